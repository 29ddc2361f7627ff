"""Many sequences at once on the bundled model: each gets the same answer as alone, and all live KV is freed."""

import numpy as np

import kvlab  # noqa: F401 - before MLX
from kvlab.decoder import Decoder
from kvlab.models import LoadedModel
from kvlab.workloads import load_workload

CONCURRENT_REQUESTS = 256


def prompts_of(loaded: LoadedModel, count: int) -> list[list[int]]:
    """Return prompts of agents with the same tools, each with its own conversation of two turns."""
    requests = [load_workload("agent", turns=2, seed=seed).requests()[seed % 2] for seed in range(count)]
    return [loaded.render(list(request.messages), list(request.tools)) for request in requests]


def test_many_concurrent_requests_get_the_tokens_of_each_alone(bundled: LoadedModel) -> None:
    prompts = prompts_of(bundled, CONCURRENT_REQUESTS)
    with Decoder(bundled, "paged", retain=0) as decoder:
        alone = [decoder.generate(prompt, max_tokens=24).tokens for prompt in prompts]
    with Decoder(bundled, "paged", max_concurrency=CONCURRENT_REQUESTS, retain=0) as decoder:
        streams = [decoder.submit(prompt, max_tokens=24) for prompt in prompts]
        most = 0
        while not all(stream.done for stream in streams):
            most = max(most, decoder.live_bytes())
            streams[int(np.argmin([stream.done for stream in streams]))].result(timeout=600)
        together = [stream.result().tokens for stream in streams]
        decoder.generate(prompts[0], max_tokens=1)
        assert decoder.live_bytes() == 0
    assert together == alone
    print(f"{CONCURRENT_REQUESTS} together: {sum(map(len, together))} tokens, {most / 1e6:.0f} MB of live KV at most")
