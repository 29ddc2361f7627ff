"""Ways in which a loaded model can become another one, and how each is undone."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import llama
from mlx_lm.tuner.utils import linear_to_lora_layers, remove_lora_layers

Undo = Callable[[], object]
Change = Callable[[Any], Undo]
LORA = {"rank": 4, "scale": 10.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.down_proj"]}


def attention(model: Any) -> Any:
    return model.layers[0].self_attn


def add_adapter(model: Any, *, dora: bool = False, seed: int = 1, scale: float = 10.0) -> None:
    """LoRA or DoRA layers as mlx-lm makes them, with weights that change what is computed."""
    mx.random.seed(seed)
    linear_to_lora_layers(model, len(model.layers), {**LORA, "scale": scale}, use_dora=dora)
    for _, layer in model.named_modules():
        if "lora_b" in layer:
            layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape)
    model.eval()
    mx.eval(model.parameters())


def attribute(owner: Any, name: str, value: Any) -> Undo:
    """Set an attribute; undoing sets what was there."""
    before = vars(owner)[name] if isinstance(owner, type | ModuleType) else getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def weights_of(model: Any, change: Callable[[], object]) -> Undo:
    """Do a change that keeps the structure; undoing sets the arrays that were there."""
    before = model.parameters()
    change()
    mx.eval(model.parameters())
    return lambda: model.update(before)


def one_element(model: Any) -> Undo:
    weight = attention(model).q_proj.weight
    before = weight[3, 5].item()
    weight[3, 5] = before + 4.0
    mx.eval(weight)
    return lambda: weight.__setitem__((3, 5), before)


def quantized(model: Any) -> Undo:
    before = [(owner, name, child) for owner in model.modules() for name, child in _linears(owner)]
    nn.quantize(model, 32, 4)
    mx.eval(model.parameters())
    return lambda: [owner.__setitem__(name, child) for owner, name, child in before]


def _linears(owner: Any) -> list[tuple[str, Any]]:
    return [(name, child) for name, child in owner.items() if isinstance(child, nn.Linear | nn.Embedding)]


def adapter(model: Any) -> Undo:
    add_adapter(model)
    return lambda: remove_lora_layers(model)


def adapter_scale(model: Any) -> Undo:
    """Another scale of the same adapter, after both were seen."""
    add_adapter(model)
    layer = attention(model).q_proj
    layer.scale = 3.0
    return lambda: remove_lora_layers(model)


def dora(model: Any) -> Undo:
    before = [(layer.self_attn, "q_proj", layer.self_attn.q_proj) for layer in model.layers]
    before += [(layer.mlp, "down_proj", layer.mlp.down_proj) for layer in model.layers]
    add_adapter(model, dora=True)
    return lambda: [owner.__setitem__(name, child) for owner, name, child in before]


def fused(model: Any) -> Undo:
    owner = attention(model)
    before = owner.q_proj
    add_adapter(model)
    new = owner.q_proj.fuse()
    mx.eval(new.parameters())
    remove_lora_layers(model)
    owner.q_proj = new
    return lambda: setattr(owner, "q_proj", before)


def last_layer_removed(model: Any) -> Undo:
    layer = model.model.layers.pop()
    return lambda: model.model.layers.append(layer)


def layers_swapped(model: Any) -> Undo:
    model.model.layers.reverse()
    return model.model.layers.reverse


def layer_replaced(model: Any) -> Undo:
    owner, before = model.layers[1], model.layers[1].mlp
    new = llama.MLP(model.args)
    new.update(tree_map(lambda array: array * 1.5, before.parameters()))
    mx.eval(new.parameters())
    owner.mlp = new
    return lambda: setattr(owner, "mlp", before)


class Doubled(llama.MLP):
    def __call__(self, x: mx.array) -> mx.array:
        return 2 * super().__call__(x)


def subclassed(model: Any) -> Undo:
    mlp = model.layers[0].mlp
    mlp.__class__ = Doubled
    return lambda: setattr(mlp, "__class__", llama.MLP)


def class_patched(_: Any) -> Undo:
    plain = llama.MLP.__call__

    def patched(self: Any, x: mx.array) -> mx.array:
        return 3 * plain(self, x)

    return attribute(llama.MLP, "__call__", patched)


def function_patched(_: Any) -> Undo:
    return attribute(llama, "swiglu", lambda gate, x: nn.relu(gate) * x)


def rope_base(model: Any) -> Undo:
    undo = [attribute(layer.self_attn.rope, "base", 777.0) for layer in model.layers]
    return lambda: [one() for one in undo]


def private_buffer(model: Any) -> Undo:
    """Rotary frequencies of one's own, in an attribute that is no parameter."""
    from mlx_lm.models.rope_utils import Llama3RoPE

    undo = []
    for layer in model.layers:
        rope = Llama3RoPE(64, 2048, False, 1e4, ROPE_SCALING)
        rope._freqs = rope._freqs * 1.5
        mx.eval(rope._freqs)
        undo.append(attribute(layer.self_attn, "rope", rope))
    return lambda: [one() for one in undo]


ROPE_SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}

CHANGES: dict[str, Change] = {
    "one element written in place": one_element,
    "one array assigned": lambda model: attribute(
        attention(model).k_proj, "weight", attention(model).k_proj.weight * 2
    ),
    "update": lambda model: weights_of(model, lambda: model.update(tree_map(lambda a: a * 1.3, model.parameters()))),
    "load_weights": lambda model: weights_of(
        model, lambda: model.load_weights([(name, array * 0.7) for name, array in _flat(model)])
    ),
    "set_dtype": lambda model: weights_of(model, lambda: model.set_dtype(mx.bfloat16)),
    "quantize": quantized,
    "LoRA": adapter,
    "scale of LoRA": adapter_scale,
    "DoRA": dora,
    "LoRA, fused": fused,
    "last layer removed": last_layer_removed,
    "layers swapped": layers_swapped,
    "layer replaced": layer_replaced,
    "subclass of one's own": subclassed,
    "method of a class patched": class_patched,
    "function of a file patched": function_patched,
    "setting of attention": lambda model: attribute(attention(model), "scale", 0.01),
    "setting of rotary embeddings": rope_base,
    "private buffer": private_buffer,
}
CODE = ("method of a class patched", "function of a file patched")
"""Changes of all models in the process."""


def _flat(model: Any) -> list[tuple[str, mx.array]]:
    return list(tree_flatten(model.parameters()))
