"""Kernels that one decode step launches in each layer, counted on the graph that MLX builds before it computes.

Every primitive of the graph is a kernel on a GPU but those that only look at memory in another way. Functions of
``mx.fast`` are one kernel there (attention two, three with a mask), though a CPU composes them from others: stand-ins
take their place. A model of L + 1 layers minus one of L leaves what a layer costs: embeddings, the head, and what all
layers share, such as one mask, fall out.

    python -m tests.kernels          # a table of today's code, counted under the backend of a Mac
"""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

VIEWS = {
    "AsStrided", "Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "NumberOfElements", "Reshape", "Slice",
    "Split", "Squeeze", "StopGradient", "Transpose", "Unflatten", "View",
}  # fmt: skip
"""Primitives that launch nothing: they give the same memory another shape."""

STEPS = 7
"""Decode steps that are counted. Their median counts: in some steps storage grows, or rows are evicted."""

LAYERS = 2
"""Layers of the smaller model: the first may do for the others what they share."""

ModelFactory = Callable[[int], nn.Module]
CachesFactory = Callable[[nn.Module], list[Any]]


def count_layer_kernels(model_factory: ModelFactory, caches_factory: CachesFactory, batch: int) -> int:
    """Kernels of one layer in a decode step of ``batch`` sequences, as :func:`layer_kernels` says which."""
    return layer_kernels(model_factory, caches_factory, batch).total()


def layer_kernels(model_factory: ModelFactory, caches_factory: CachesFactory, batch: int) -> Counter[str]:
    """How often each primitive runs in one layer in a decode step of ``batch`` sequences.

    Args:
        model_factory: gives an mlx-lm model of a number of layers.
        caches_factory: gives a model's caches, one a layer, of a batch whose prompts are through; the layout of its
            rows is its own affair.
    """
    with stand_ins():
        few, more = (_step_kernels(model_factory(count), caches_factory, batch) for count in (LAYERS, LAYERS + 1))
    return Counter({name: more[name] - few[name] for name in more if more[name] != few[name]})


def _step_kernels(model: nn.Module, caches_factory: CachesFactory, batch: int) -> Counter[str]:
    """The kernels of the step that is the median of STEPS, after one that lays the batch out."""
    mx.eval(model.parameters())
    caches = caches_factory(model)
    counts = []
    for step in range(STEPS + 2):
        tokens = mx.full((batch, 1), 7 + step)
        mx.eval(tokens, _arrays(caches))
        logits = model(tokens, cache=caches)
        outputs = [logits, *_arrays(caches)]
        counts.append(kernels(outputs))
        mx.eval(outputs)
        order = getattr(caches[0], "order", None)
        if order is not None:  # as the decoder does between two steps
            for cache in caches:
                cache.filter(order)
    return sorted(counts[2:], key=Counter.total)[STEPS // 2]


def kernels(outputs: Sequence[mx.array]) -> Counter[str]:
    """The primitives, views apart, that evaluating ``outputs`` runs."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *outputs)
    names = [re.sub(r"^Compiled.*", "Compiled", name) for name in re.findall(r'\[label ="([^"]*)"', graph.getvalue())]
    return Counter(name for name in names if name not in VIEWS)


def _arrays(caches: Sequence[Any]) -> list[mx.array]:
    """Every array that a step leaves behind in ``caches``."""
    leaves: list[tuple[str, Any]] = tree_flatten([[cache.state, getattr(cache, "offset", 0)] for cache in caches])
    return [leaf for _, leaf in leaves if isinstance(leaf, mx.array)]


@contextmanager
def stand_ins() -> Iterator[None]:
    """Put in place of functions of ``mx.fast`` what depends on the same arrays, and is as many nodes as they launch."""

    def norm(x: mx.array, *weights: Any, **_: Any) -> mx.array:
        return _node(x, *weights)

    def rope(a: mx.array, dims: int, *, offset: Any, freqs: Any = None, **_: Any) -> mx.array:
        return _node(a, offset, freqs)

    def attention(q: mx.array, k: mx.array, v: mx.array, *, mask: Any = None, sinks: Any = None, **_: Any) -> mx.array:
        out = _node(_node(q, k, v, sinks))
        if v.shape[-1] != q.shape[-1]:
            out = mx.broadcast_to(out[..., :1], (*q.shape[:-1], v.shape[-1]))
        return _node(out, mask) if isinstance(mask, mx.array) else out

    new = {"rms_norm": norm, "layer_norm": norm, "rope": rope, "scaled_dot_product_attention": attention}
    old = {name: getattr(mx.fast, name) for name in new}
    try:
        for name, function in new.items():
            setattr(mx.fast, name, function)
        yield
    finally:
        for name, function in old.items():
            setattr(mx.fast, name, function)


def _node(x: mx.array, *others: Any) -> mx.array:
    """One primitive, ``Depends``, that needs ``x`` and those of ``others`` that are arrays."""
    return mx.depends([x], [other for other in others if isinstance(other, mx.array)] or [x])[0]


# -- today's layouts --------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 261,
}
EQUAL, CLOSE, RAGGED = (100, 100, 100, 100), (100, 103, 107, 115), (40, 130, 270, 520)
SHARED, SHORT = 640, 128
"""Tokens of a prefix whose readers attend to it together, and of one of which they only share the memory."""


def small_model(architecture: str = "qwen3", dtype: mx.Dtype = mx.bfloat16) -> ModelFactory:
    """Small models of mlx-lm's ``architecture``, in the dtype that a Mac computes in."""

    def make(layers: int) -> nn.Module:
        module = importlib.import_module(f"mlx_lm.models.{architecture}")
        config = {"model_type": architecture, **SMALL, "num_hidden_layers": layers}
        model: nn.Module = module.Model(module.ModelArgs.from_dict(config))
        model.set_dtype(dtype)
        return model

    return make


def plain(*lengths: int) -> CachesFactory:
    """mlx-lm's own caches of prompts of these lengths, batched by mlx-lm."""
    return _merged(lambda model, _: make_prompt_cache(model), lengths)


def under(policy: str, *lengths: int) -> CachesFactory:
    """kvlab's layer caches under ``policy`` of prompts of these lengths, batched as the decoder does."""
    from kvlab.caches import own_caches
    from kvlab.policies import Policy

    def make(model: nn.Module, length: int) -> list[Any]:
        return own_caches(model, Policy.parse(policy), prompt_tokens=length)

    return _merged(make, lengths)


def sharing(policy: str, shared: int, *lengths: int) -> CachesFactory:
    """The same of prompts whose first ``shared`` tokens are held once for all; ``lengths`` are what follows."""
    from kvlab.caches import own_caches
    from kvlab.policies import Policy

    def build(model: nn.Module) -> list[Any]:
        parsed = Policy.parse(policy)
        source = own_caches(model, parsed)
        _prefill(model, source, shared)
        prefixes = [cache.share_first(shared) for cache in source]
        sequences = []
        for length in lengths:
            caches = own_caches(model, parsed, prompt_tokens=shared + length)
            for cache, prefix in zip(caches, prefixes, strict=True):
                cache.begin_with((prefix,))
                prefix.users += 1
            _prefill(model, caches, length)
            sequences.append(caches)
        return [type(layer[0]).merge(list(layer)) for layer in zip(*sequences, strict=True)]

    return build


def _merged(make: Callable[[nn.Module, int], list[Any]], lengths: Sequence[int]) -> CachesFactory:
    def build(model: nn.Module) -> list[Any]:
        sequences = []
        for length in lengths:
            caches = make(model, length)
            _prefill(model, caches, length)
            sequences.append(caches)
        return [type(layer[0]).merge(list(layer)) for layer in zip(*sequences, strict=True)]

    return build


def _prefill(model: nn.Module, caches: list[Any], count: int) -> None:
    mx.eval(model(mx.arange(count)[None] % 250, cache=caches))
    mx.eval(_arrays(caches))


LAYOUTS: dict[str, tuple[Callable[[], CachesFactory], int]] = {
    "alone": (lambda: under("full", 100), 1),
    "private, equal lengths": (lambda: under("full", *EQUAL), 4),
    "private, one bucket": (lambda: under("full", *CLOSE), 4),
    "ragged": (lambda: under("full", *RAGGED), 4),
    "shared prefix, alone": (lambda: sharing("full", SHORT, 32), 1),
    "shared prefix, four": (lambda: sharing("full", SHARED, *(length - 70 for length in CLOSE)), 4),
    "short shared prefix, four": (lambda: sharing("full", SHORT, *(length - 70 for length in CLOSE)), 4),
    "shared prefix, four, ragged": (lambda: sharing("full", SHARED, *RAGGED), 4),
    "quantized, alone": (lambda: under("quantized:bits=4", 100), 1),
    "quantized": (lambda: under("quantized:bits=4", *CLOSE), 4),
    "snapkv, alone": (lambda: under("snapkv:budget=64", 100), 1),
    "snapkv": (lambda: under("snapkv:budget=64", *CLOSE), 4),
    "rotating, alone": (lambda: under("rotating:window=64,sinks=4", 100), 1),
    "rotating": (lambda: under("rotating:window=64,sinks=4", *CLOSE), 4),
    "mlx-lm, alone": (lambda: plain(100), 1),
    "mlx-lm, ragged": (lambda: plain(*RAGGED), 4),
}


def count_layouts(architecture: str = "qwen3") -> dict[str, dict[str, int]]:
    """The kernels of a layer in every layout of LAYOUTS."""
    return {
        name: dict(layer_kernels(small_model(architecture), layout(), batch))
        for name, (layout, batch) in LAYOUTS.items()
    }


def count_as_on_a_mac(architecture: str = "qwen3") -> dict[str, dict[str, int]]:
    """The same, counted in a process that decides everything as on a Mac."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels", architecture, "--json"],
        env={**os.environ, "KVLAB_BACKEND": "mlx"},
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    counts: dict[str, dict[str, int]] = json.loads(done.stdout)
    return counts


def table(counts: dict[str, dict[str, int]]) -> str:
    """One line a layout: all kernels of a layer, then which."""
    lines = []
    for name, kinds in counts.items():
        which = " ".join(f"{kind}:{count}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1]))
        lines.append(f"{name:28}{sum(kinds.values()):4}  {which}")
    return "\n".join(lines)


if __name__ == "__main__":
    architectures = [argument for argument in sys.argv[1:] if argument != "--json"] or ["qwen3"]
    if "--json" in sys.argv:
        print(json.dumps(count_layouts(architectures[0])))
    else:
        print("\n\n".join(f"{name}\n{table(count_as_on_a_mac(name))}" for name in architectures))
