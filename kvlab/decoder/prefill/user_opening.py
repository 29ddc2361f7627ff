"""How many tokens a chat template writes between the end of a message and the words of the user's next one."""

from __future__ import annotations

import numpy as np

from kvlab.decoder.prefix_tree import common_prefix
from kvlab.errors import KvlabError
from kvlab.models import LoadedModel


def user_opening(loaded: LoadedModel) -> int:
    """Return the tokens that open a user's message behind another one; 0 where the model has no such template."""
    if not getattr(loaded.tokenizer, "has_chat_template", False):
        return 0
    before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        one, other = (
            np.array(loaded.render([*before, {"role": "user", "content": words}], generation=False))
            for words in ("c", "d")
        )
    except KvlabError:
        return 0
    opened = one[: common_prefix(one, other)]
    ends = np.flatnonzero(np.isin(opened, list(loaded.eos)))
    return len(opened) - int(ends[-1]) - 1 if len(ends) else 0
