"""``exp`` for attention weights, composed of operations that MLX's x86 build has vector code for."""

from __future__ import annotations

import mlx.core as mx

LOG2_E = 1.4426950408889634
ROUND = 12582912.0
"""1.5 * 2**23: adding it to a float32 leaves the nearest integer in its low mantissa bits."""
LEAST = -125.0
"""Below 2**LEAST a weight is nothing beside the largest, which is 1; it keeps the exponent field from wrapping."""
# Minimax polynomial of 2**f on [-0.5, 0.5], relative error below 3e-7.
POLYNOMIAL = (1.33952798e-3, 9.67076313e-3, 5.55034068e-2, 2.40222117e-1, 6.93147200e-1, 1.00000005)


def exp_composed(x: mx.array) -> mx.array:
    """``exp(x)`` of float32 ``x <= 0`` from additions, multiplications and bit shifts.

    Cody and Waite's scheme: ``2**(i + f)``, a polynomial for ``2**f`` and the integer written into the exponent
    field. Relative error below 1e-6; anything below 2**-125 comes out as about 2**-125.
    """
    y = mx.maximum(x * LOG2_E, LEAST)
    shifted = y + ROUND
    f = y - (shifted - ROUND)
    p = f * POLYNOMIAL[0] + POLYNOMIAL[1]
    for c in POLYNOMIAL[2:]:
        p = p * f + c
    # The low bits of `shifted` are the integer; what stands above them is shifted out.
    exponent = (shifted.view(mx.int32) + 127) << 23
    return p * exponent.view(mx.float32)
