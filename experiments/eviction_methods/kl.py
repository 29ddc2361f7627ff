"""How far every eviction method is from `full` on pages of text, token by token: SmolLM2-135M, docs/quality.md.

    python experiments/eviction_methods/kl.py [--model NAME] [--sample] [--json]

Eight texts of this project's own docs lie in `texts/`, as they were when this was first measured. Of each, 800 tokens
are the prompt, rows are evicted at its end, and the 32 tokens that follow are led through every method. `oracle` and
`kvzip` get their scores for each text here. `--sample` takes the first text only.
"""

from __future__ import annotations

from pathlib import Path

from command import Measured, arguments, run
from methods import measured

from kvlab.decoder.shared_prompts import opened
from kvlab.models import LoadedModel
from kvlab.workloads.base import WorkloadRequest
from kvlab.workloads.forced import TEXT, TeacherForced, TextRequest

TEXTS = Path(__file__).parent / "texts"
CONTEXT_TOKENS, ANSWER_TOKENS = 800, 32
BUDGETS = (0.25, 0.5)


class Pages(TeacherForced):
    """The beginning of each text: a context, and the tokens behind it, which are forced."""

    def __init__(self, paths: list[Path]) -> None:
        self.name, self.paths = "kl:docs", paths

    def requests(self) -> list[WorkloadRequest]:
        return [
            TextRequest(
                path.stem, 1, (), (), None, TEXT, ANSWER_TOKENS,
                text=path.read_text(encoding="utf-8"), context_tokens=CONTEXT_TOKENS,
            )
            for path in self.paths
        ]  # fmt: skip


def main() -> None:
    asked = arguments(__doc__).parse_args()
    paths = sorted(TEXTS.glob("*.md"))[: 1 if asked.sample else None]

    def of_pages(loaded: LoadedModel, folder: Path) -> Measured:
        with opened("2GB") as shared:
            return measured(loaded, Pages(paths), lambda i: Pages([paths[i]]), BUDGETS, folder, shared, len(paths))

    run("methods_kl", asked, of_pages)


if __name__ == "__main__":
    main()
