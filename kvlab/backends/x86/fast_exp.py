"""``exp`` for attention weights, composed of operations that MLX's x86 build has vector code for."""

from __future__ import annotations

import mlx.core as mx

LOG2_E = 1.4426950408889634
ROUNDING_SHIFT = 12582912.0
"""1.5 * 2**23: adding it to a float32 leaves the nearest integer in its low mantissa bits."""
MIN_EXPONENT = -125.0
"""Smallest exponent of 2: a weight below is negligible beside the largest, 1, and would wrap the exponent field."""
# Minimax polynomial of 2**f on [-0.5, 0.5], relative error below 3e-7.
POLYNOMIAL = (1.33952798e-3, 9.67076313e-3, 5.55034068e-2, 2.40222117e-1, 6.93147200e-1, 1.00000005)


def exp_composed(x: mx.array) -> mx.array:
    """Compute ``exp(x)`` of float32 ``x <= 0`` by additions, multiplications and bit shifts.

    Cody and Waite's scheme: ``2**(i + f)``, a polynomial for ``2**f`` and the integer written into the exponent
    field. Relative error below 1e-6; results below 2**-125 are about 2**-125.
    """
    y = mx.maximum(x * LOG2_E, MIN_EXPONENT)
    shifted = y + ROUNDING_SHIFT
    f = y - (shifted - ROUNDING_SHIFT)
    p = f * POLYNOMIAL[0] + POLYNOMIAL[1]
    for c in POLYNOMIAL[2:]:
        p = p * f + c
    # The low bits of `shifted` are the integer; the bits above them are shifted out.
    exponent = (shifted.view(mx.int32) + 127) << 23
    return p * exponent.view(mx.float32)
