"""Policies on a model that really retrieves: lossless ones change nothing, lossy ones cost what they must."""

import pytest

from kvlab.decoder import Decoder
from kvlab.workloads import load_workload

N = 12
TOKENS = 600


def prompts_of(bundled, workload):
    return [bundled.render(list(request.messages), list(request.tools)) for request in workload.requests()]


def test_lossless_policies_answer_as_no_cache_does_alone_batched_and_after_a_restart(bundled, tmp_path):
    requests = load_workload("agent", turns=6, n=2, seed=5).requests()
    prompts = [bundled.render(list(request.messages), list(request.tools)) for request in requests]
    with Decoder(bundled, "full") as decoder:
        want = [decoder.generate(p, max_tokens=r.max_tokens).tokens for p, r in zip(prompts, requests, strict=True)]
    for policy in ("paged", f"tiered:dir={tmp_path / 'store'}"):
        with Decoder(bundled, policy) as decoder:
            for i, prompt in enumerate(prompts[:6]):
                completion = decoder.generate(prompt, max_tokens=requests[i].max_tokens)
                assert completion.tokens == want[i]
                # Everything of the turn before is reused, to the token.
                assert i == 0 or completion.cached_tokens >= len(prompts[i - 1])
            limits = [request.max_tokens for request in requests]
            streams = [decoder.submit(p, max_tokens=n) for p, n in zip(prompts[4:], limits[4:], strict=True)]
            assert [stream.result().tokens for stream in streams] == want[4:]
    with Decoder(bundled, policy) as decoder:
        again = decoder.generate(prompts[5], max_tokens=requests[5].max_tokens)
    assert again.tokens == want[5]
    assert len(prompts[5]) - again.cached_tokens <= 32


def test_a_snapshot_is_written_at_the_end_or_on_demand(bundled, tmp_path):
    request = load_workload("agent", turns=1, seed=6).requests()[0]
    prompt = bundled.render(list(request.messages), list(request.tools))
    policy = f"snapshot:dir={tmp_path / 'store'}"
    with Decoder(bundled, policy) as decoder:
        want = decoder.generate(prompt, max_tokens=8).tokens
        assert decoder.store.stats()["bytes_written"] == 0
        assert decoder.store.flush()
        written = decoder.store.stats()["bytes_written"]
    assert written > 0
    with Decoder(bundled, policy) as decoder:
        again = decoder.generate(prompt, max_tokens=8)
    assert again.tokens == want
    assert again.cached_tokens == len(prompt) - 1


@pytest.fixture(scope="module")
def accuracy(bundled):
    """Retrieval accuracy by policy, on the same prompts."""
    workload = load_workload("retrieval", n=N, seed=77, tokens=TOKENS)
    requests, prompts = workload.requests(), prompts_of(bundled, workload)
    scores: dict[str, float] = {}

    def measure(policy: str) -> float:
        if policy not in scores:
            with Decoder(bundled, policy) as decoder:
                streams = [decoder.submit(p, max_tokens=r.max_tokens) for p, r in zip(prompts, requests, strict=True)]
                texts = [bundled.decode(stream.result().tokens) for stream in streams]
            grades = [request.grade(text)["accuracy"] for request, text in zip(requests, texts, strict=True)]
            scores[policy] = sum(grades) / N
        return scores[policy]

    return measure


def test_full_and_eight_bits_retrieve(accuracy):
    assert accuracy("full") >= 0.9
    assert accuracy("quantized:bits=8") >= 0.9


def test_a_window_forgets_what_lies_before_it(accuracy):
    assert accuracy("rotating:window=96") <= accuracy("full") - 0.4


@pytest.mark.parametrize("budget", [0.5, 0.25])
def test_snapkv_keeps_what_random_loses(accuracy, budget):
    assert accuracy(f"snapkv:budget={budget}") >= accuracy(f"random:budget={budget}") + 0.4
