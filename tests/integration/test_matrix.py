"""Retention, codec, reuse and tiers together: every pair of modules works, or is refused with what to write instead.

The modules are those that are registered, so that a new one joins by itself. The combinations are the fewest, about,
in which every pair of choices from two slots occurs.

What works means: requests side by side answer as alone, any chunks of the prompt give the same answer, and KV that is
found again, after a restart too, gives the answers of the same retention and codec without reuse. Scores from a file
belong to one prompt, so that ``kvzip`` and ``oracle`` are refused until they are given one.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kvlab.caches.later_attention import continuation_attention
from kvlab.caches.query_centres import query_centres
from kvlab.caches.storage_codec import transform_of_text
from kvlab.decoder import Decoder
from kvlab.errors import KvlabError, PolicyError
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.policies.scorers.saved_scores import save_scores
from kvlab.policies.scorers.triattention import save_centres
from kvlab.policies.slots import known_modules
from tests.integration.test_decoder import conversation

SPECS = {
    "rotating": "rotating:window=24,sinks=4",
    "snapkv": "snapkv:window=8",
    "pyramidkv": "pyramidkv:window=4,beta=4",
    "tova": "tova:interval=4",
    "lagkv": "lagkv:lag=8",
    "expected": "expected:window=16",
    "compactor": "compactor:chunk=16",
    "sepllm": "sepllm:separators=7+8+9,latest=8",
    "triattention": "triattention:calibration={folder}/centres.npz,prefix=4",
    "adakv": "adakv(snapkv:window=8)",
    "criticalkv": "criticalkv(snapkv:window=8)",
    "dms": "dms(knorm):threshold=-9,recent=16",
    "local": "local(keydiff):block=16",
    "quantized": "quantized:bits=4",
    "kivi": "kivi:bits=4,group=32,recent=32",
    "kvtc": "kvtc:transform={folder}/fine.kvtc",
    "paged": "paged:block=16",
    "tiered": "tiered:dir={folder}/tiered,ram=1MB",
    "snapshot": "snapshot:dir={folder}/snapshot",
}
"""Specs of modules whose defaults need more than short prompts, or a file."""
REFUSED = {"kvzip", "oracle"}
"""Modules that need a file of one prompt."""
SHARED, BEHIND = conversation(31, 64), [conversation(32, 30), conversation(33, 21)]
PROMPTS = [SHARED + BEHIND[0], SHARED + BEHIND[1], conversation(34, 70)]
TOKENS = 12


def own(slot: str) -> list[str]:
    return sorted(
        name for name, cls in known_modules().items() if cls.slot == slot and cls.__module__.startswith("kvlab.")
    )


def choices() -> list[list[str]]:
    """The values of the dimensions: retention, codec, and reuse with its tiers."""
    homes = [*(reuse for reuse in own("reuse") if reuse != "paged"), *(f"paged|{tier}" for tier in own("tiers"))]
    return [own("retention"), own("codec"), homes]


def covering(dimensions: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return combinations in which every pair of values of two dimensions occurs: greedy, and always the same."""
    left = {
        ((i, a), (j, b))
        for i, j in itertools.combinations(range(len(dimensions)), 2)
        for a in dimensions[i]
        for b in dimensions[j]
    }
    everything = list(itertools.product(*dimensions))
    found = []
    while left:
        best = max(everything, key=lambda one: len(pairs_of(one) & left))
        found.append(best)
        left -= pairs_of(best)
    return found


def pairs_of(values: Sequence[str]) -> set[tuple[tuple[int, str], tuple[int, str]]]:
    places = list(enumerate(values))
    return set(itertools.combinations(places, 2))


COMBINATIONS = covering(choices())


def test_every_pair_of_choices_is_tried() -> None:
    dimensions = choices()
    tried = set().union(*map(pairs_of, COMBINATIONS))
    assert len(tried) == sum(len(a) * len(b) for a, b in itertools.combinations(dimensions, 2))
    assert set(SPECS) <= set().union(*(own(slot) for slot in ("retention", "codec", "reuse", "tiers")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama: LoadedModel) -> Path:
    """A folder with the files that triattention and kvtc read."""
    path = tmp_path_factory.mktemp("matrix")
    save_centres(path / "centres.npz", query_centres(llama.model, [conversation(seed, 80) for seed in (1, 2)]))
    text = [token for seed in range(8) for token in conversation(40 + seed, 128)]
    # Steps so small that what is encoded at rest gives the answers of what is not.
    fine = transform_of_text(llama.model, text, k_step=0.002, v_step=0.002, most_tokens=len(text))
    fine.save(path / "fine.kvtc")
    return path


@pytest.fixture(scope="module")
def alone(llama: LoadedModel) -> Iterator[dict[str, list[tuple[int, ...]]]]:
    """Answers by retention and codec, without reuse: each prompt alone."""
    yield {}


def spec_of(names: Sequence[str], folder: Path) -> str:
    parts = [part for name in names for part in name.split("|")]
    return "|".join(SPECS.get(part, part).format(folder=folder) for part in parts)


def answers(decoder: Decoder, prompts: Sequence[list[int]]) -> list[tuple[int, ...]]:
    return [tuple(decoder.generate(prompt, max_tokens=TOKENS).tokens) for prompt in prompts]


@contextlib.contextmanager
def quiet_decoder(loaded: LoadedModel, policy: str, **settings: int) -> Iterator[Decoder]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Decoder(loaded, policy, **settings) as decoder:
            yield decoder


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_a_combination_works_or_is_refused_with_what_to_write(
    llama: LoadedModel, names: tuple[str, ...], folder: Path, tmp_path: Path, alone: dict[str, list[tuple[int, ...]]]
) -> None:
    retention, codec, _ = names
    spec = spec_of(names, tmp_path)
    for file in folder.iterdir():
        spec = spec.replace(str(tmp_path / file.name), str(file))
    plain = spec_of([retention, "raw" if codec == "kvtc" else codec], folder)
    try:
        policy = Policy.parse(spec)
        with quiet_decoder(llama, plain) as decoder:
            if plain not in alone:
                alone[plain] = answers(decoder, PROMPTS)
                streams = [decoder.submit(prompt, max_tokens=TOKENS) for prompt in PROMPTS]
                assert [tuple(stream.result().tokens) for stream in streams] == alone[plain]
        # kivi attends to a chunk before it is encoded, so that its answers depend on the chunks.
        step = {} if policy.codec.encodes_groups else {"prefill_step": 48}
        with quiet_decoder(llama, spec, **step) as decoder:
            assert answers(decoder, PROMPTS) == alone[plain]  # the second begins with the first one's KV
            streams = [decoder.submit(prompt, max_tokens=TOKENS) for prompt in PROMPTS]
            assert [tuple(stream.result().tokens) for stream in streams] == alone[plain]
    except KvlabError as error:
        assert is_told_what_to_write(str(error)), error
        assert refused(retention, codec, names[2]), error
        return
    assert not refused(retention, codec, names[2])
    if getattr(policy.tiers, "survives_restart", False):
        with quiet_decoder(llama, spec) as decoder:
            assert answers(decoder, PROMPTS[:1]) == alone[plain][:1]


def is_told_what_to_write(text: str) -> bool:
    return any(word in text for word in ("write ", "use ", "leave "))


def refused(retention: str, codec: str, home: str) -> bool:
    """Return whether a combination has no meaning, or none that is carried out."""
    if retention in REFUSED:
        return True
    if codec == "kvtc" and not home.startswith("paged"):
        return True  # it writes what is at rest
    if codec == "kvtc" and retention == "local":
        return True  # one of them compresses a block
    if codec == "kivi" and (retention != "full" or home != "none"):
        return True  # rows that are encoded together cannot leave or be stored one by one
    if retention == "rotating" and home != "none":
        return True  # rows that a window has dropped are those that another prompt needs
    if home in ("slots", "prompts") and retention != "full":
        return True
    return retention == "local" and home not in ("none", *(one for one in choices()[2] if one.startswith("paged")))


@pytest.mark.parametrize("spec", ["kvzip", "oracle", "adakv(kvzip)"])
def test_scores_of_a_prompt_that_are_missing_are_refused_before_anything_is_computed(
    llama: LoadedModel, spec: str
) -> None:
    with pytest.raises(PolicyError, match=r"has no scores: write (kvzip|oracle):scores=FILE"):
        Decoder(llama, spec)


def test_scores_of_a_prompt_work_under_a_share_of_it_as_budget(llama: LoadedModel, tmp_path: Path) -> None:
    found = continuation_attention(llama.model, PROMPTS[0], [5, 6, 7])
    save_scores(tmp_path / "scores.npz", found.tokens, found.layers)
    with Decoder(llama, f"oracle:scores={tmp_path}/scores.npz,budget=0.5") as decoder:
        assert len(answers(decoder, PROMPTS[:1])[0]) == TOKENS
