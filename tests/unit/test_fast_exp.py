"""Exponentials composed of vector operations are exponentials."""

import mlx.core as mx
import numpy as np
import pytest

from kvlab.backends.x86.fast_exp import exp_composed

pytestmark = pytest.mark.x86_only


def test_the_composed_exponential_is_as_good_as_float32():
    x = np.linspace(-86, 0, 400_001).astype(np.float32)
    got = np.array(exp_composed(mx.array(x)), np.float64)
    # The argument itself is rounded: at -86 one unit in its last place moves exp by 8e-6.
    assert np.max(np.abs(got / np.exp(x.astype(np.float64)) - 1)) < 8e-6
    assert np.max(np.abs(got / np.exp(x.astype(np.float64)) - 1)[x > -10]) < 1e-6
    far = np.array(exp_composed(mx.array([-100.0, -1e30, -np.inf, 0.0])))
    assert np.all(far[:3] < 1e-37)
    assert far[3] == pytest.approx(1.0, abs=1e-6)
