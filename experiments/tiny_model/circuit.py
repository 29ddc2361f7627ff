"""An induction circuit set by construction: the model copies what followed the same tokens earlier, before training.

Induction heads (arXiv:2209.11895) form in a sudden phase that a model this small reaches late or never; here they are
the starting point, and training shapes the rest around them. The residual stream is cut into subspaces:

    cur        the token's own code (random, spread out)
    p1 p2 p3   the codes of the tokens one, two and three places back
    out        the code of the token to say next
    const      one dimension that is the same for every token

Layer 0: three heads ask for a fixed distance. Queries and keys are constant vectors; RoPE alone makes their product
`sum_f w_f cos(f (distance - offset))`, which peaks at the offset over the fast frequencies.

Layer 1: all heads match by content. The key at j holds what stood before j, the query at i holds what stands at i, both
on the slow frequencies, which hardly turn within 4,000 tokens. The first kv head compares three places back only (in
our facts the name stands there), the second the last three tokens. Both copy the code of token j into `out`, where the
output layer reads it.
"""

from __future__ import annotations

import torch
from network import HEAD_DIM, HIDDEN, Llama, frequencies
from torch import Tensor

CODE = 48
CUR, P1, P2, P3, OUT = (slice(start, start + CODE) for start in range(0, 5 * CODE, CODE))
CONST, CONST_VALUE = 5 * CODE, 4.0
SLOW = 16  # frequencies from here on match content: 32 of a head's 64 dims
HALF = HEAD_DIM // 2


@torch.no_grad()
def construct(model: Llama, seed: int, noise: float = 0.02) -> None:
    """Sets the circuit in layers 0 and 1 of `model`, everything else to small noise."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            scale = noise * (0.35 if "o_proj" in name or "down_proj" in name else 1.0)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    codes = spread_codes(model.lm_head.weight.shape[0], generator)
    embedding = model.model.embed_tokens.weight
    embedding[:, CUR] += codes
    embedding[:, CONST] = CONST_VALUE
    model.lm_head.weight[:, OUT] += 0.25 * codes

    _offset_heads(model)
    _matching_heads(model)


def spread_codes(count: int, generator: torch.Generator, steps: int = 150) -> Tensor:
    """`[count, CODE]` vectors of equal norm, pushed apart; so are their parts that are matched."""
    codes = torch.randn(count, CODE, generator=generator)
    matched = 2 * (HALF - SLOW)
    with torch.enable_grad():
        codes.requires_grad_()
        optimizer = torch.optim.Adam([codes], lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = 0.0
            for part in (codes, codes[:, :matched]):
                unit = torch.nn.functional.normalize(part, dim=-1)
                alike = unit @ unit.T - torch.eye(count)
                loss = loss + torch.logsumexp(20 * alike.abs(), -1).mean()
            loss.backward()
            optimizer.step()
    codes = codes.detach()
    # equal norm in the matched part and in the rest, so that every token matches as strongly as any other
    head, rest = codes[:, :matched], codes[:, matched:]
    unit = torch.nn.functional.normalize
    return torch.cat((unit(head, dim=-1) * matched**0.5, unit(rest, dim=-1) * (CODE - matched) ** 0.5), -1)


def _offset_heads(model: Llama) -> None:
    attention = model.model.layers[0].self_attn
    angle = frequencies().float()
    weights = torch.zeros(HALF)
    weights[:SLOW] = torch.linspace(14.0, 2.0, SLOW)
    amplitude = (weights * HEAD_DIM**0.5).sqrt()
    const = CONST_VALUE / _rms(CODE + CONST_VALUE**2)  # the constant after the norm
    for kv in range(2):
        attention.k_proj.weight[kv * HEAD_DIM : (kv + 1) * HEAD_DIM] = 0
        attention.k_proj.weight[kv * HEAD_DIM : kv * HEAD_DIM + HALF, CONST] = amplitude / const
        attention.v_proj.weight[kv * HEAD_DIM : kv * HEAD_DIM + CODE, CUR] += torch.eye(CODE)
    gain = _rms(CODE + CONST_VALUE**2)  # undoes the norm's scaling of the copied code
    for head, (offset, target) in enumerate(((1, P1), (2, P2), (3, P3))):
        rows = head * HEAD_DIM
        attention.q_proj.weight[rows : rows + HEAD_DIM] = 0
        attention.q_proj.weight[rows : rows + HALF, CONST] = amplitude * (angle * offset).cos() / const
        attention.q_proj.weight[rows + HALF : rows + HEAD_DIM, CONST] = -amplitude * (angle * offset).sin() / const
        attention.o_proj.weight[target, rows : rows + CODE] += gain * torch.eye(CODE)


def _matching_heads(model: Llama) -> None:
    attention = model.model.layers[1].self_attn
    scale = 1 / _rms(4 * CODE + CONST_VALUE**2)  # of one code dimension after the norm
    matched = 2 * (HALF - SLOW)
    slow = [*range(SLOW, HALF), *range(HALF + SLOW, HEAD_DIM)]  # dims of a head on slow frequencies
    # logit of one matched token: sharp * matched
    single = (26.0 / matched * HEAD_DIM**0.5) ** 0.5 / scale
    triple = (14.0 / matched * HEAD_DIM**0.5) ** 0.5 / scale
    turn = [_turn(matched, seed) for seed in range(3)]  # keeps the three compared places apart in the same dims
    reads = {
        0: ((P2, P3, single * turn[0]),),
        1: ((CUR, P1, triple * turn[0]), (P1, P2, triple * turn[1]), (P2, P3, triple * turn[2])),
    }
    for kv, places in reads.items():
        key_rows = [kv * HEAD_DIM + dim for dim in slow]
        for asked, stored, matrix in places:
            attention.k_proj.weight[key_rows, stored.start : stored.start + matched] += matrix
            for head in (2 * kv, 2 * kv + 1):
                query_rows = [head * HEAD_DIM + dim for dim in slow]
                attention.q_proj.weight[query_rows, asked.start : asked.start + matched] += matrix
        attention.v_proj.weight[kv * HEAD_DIM : kv * HEAD_DIM + CODE, CUR] += torch.eye(CODE)
    for head in range(4):
        attention.o_proj.weight[OUT, head * HEAD_DIM : head * HEAD_DIM + CODE] += 0.5 * torch.eye(CODE)


def _rms(squares: float) -> float:
    """Root mean square over the hidden width of a residual whose squares sum to `squares`."""
    return (squares / HIDDEN) ** 0.5


def _turn(size: int, seed: int) -> Tensor:
    """A random orthogonal matrix."""
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(1000 + seed)))
    return q
