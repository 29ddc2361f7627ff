"""The model in PyTorch: a standard Llama decoder (arXiv:2302.13971) with the parameter names of Hugging Face."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 2304,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e8,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 256, 4, 2, 64


def frequencies() -> Tensor:
    """RoPE's angle per token, `[head_dim / 2]`, fastest first; dims `k` and `k + 32` of a head turn together."""
    return CONFIG["rope_theta"] ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * HEAD_DIM, bias=False)
        self.k_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM, bias=False)
        self.v_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], rows: Tensor | None = None) -> Tensor:
        """`x` is `[batch, length, hidden]`; with `rows` `[batch, r]` only those positions ask and are returned."""
        batch, length, _ = x.shape
        keys = rotate(self.k_proj(x).view(batch, length, KV_HEADS, HEAD_DIM).transpose(1, 2), *rope)
        values = self.v_proj(x).view(batch, length, KV_HEADS, HEAD_DIM).transpose(1, 2)
        asking, mask = x, None
        if rows is not None:
            asking = take(x, rows)
            rope = (rope[0][rows].unsqueeze(1), rope[1][rows].unsqueeze(1))
            mask = (torch.arange(length) <= rows.unsqueeze(-1)).unsqueeze(1)  # [batch, 1, r, length]
        queries = rotate(self.q_proj(asking).view(batch, -1, HEADS, HEAD_DIM).transpose(1, 2), *rope)
        group = HEADS // KV_HEADS
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=rows is None)
        return self.o_proj(out.transpose(1, 2).reshape(batch, -1, HEADS * HEAD_DIM))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        inner = CONFIG["intermediate_size"]
        self.gate_proj = nn.Linear(HIDDEN, inner, bias=False)
        self.up_proj = nn.Linear(HIDDEN, inner, bias=False)
        self.down_proj = nn.Linear(inner, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(HIDDEN, eps=CONFIG["rms_norm_eps"])
        self.self_attn = Attention()
        self.post_attention_layernorm = nn.RMSNorm(HIDDEN, eps=CONFIG["rms_norm_eps"])
        self.mlp = Mlp()

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], rows: Tensor | None = None) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), rope, rows)
        x = (x if rows is None else take(x, rows)) + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(CONFIG["vocab_size"], HIDDEN)
        self.layers = nn.ModuleList(Block() for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = nn.RMSNorm(HIDDEN, eps=CONFIG["rms_norm_eps"])


class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Decoder()
        self.lm_head = nn.Linear(HIDDEN, CONFIG["vocab_size"], bias=False)

    def forward(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits of `ids` `[batch, length]`; with `rows` `[batch, r]` of those positions alone."""
        angles = torch.outer(torch.arange(ids.shape[1], dtype=torch.float64), frequencies())
        angles = torch.cat((angles, angles), -1)
        rope = (angles.cos().float(), angles.sin().float())
        x = self.model.embed_tokens(ids)
        *lower, last = self.model.layers
        for layer in lower:
            x = layer(x, rope)
        return self.lm_head(self.model.norm(last(x, rope, rows)))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE (arXiv:2104.09864) in the half-split layout; `x` `[batch, heads, length, head_dim]`."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows `[batch, r]` of `x` `[batch, length, hidden]`."""
    return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
