"""Evaluates everything a model holds, so that any thread can run it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import mlx.core as mx

from kvlab.models.object_graph import arrays


def evaluate_arrays(root: Any) -> None:
    """Evaluate every array that can be reached from ``root``: parameters, private attributes, and what they refer to.

    Loading evaluates parameters only. mlx-lm computes the frequencies of scaled rotary embeddings as a private
    attribute, lazily, on the stream of the thread that builds the model; streams are thread-local, so another thread
    cannot compute them: "There is no Stream(cpu, 0) in current thread".
    """
    mx.eval(list(arrays(root)))


def evaluate_own_arrays(root: Any) -> None:
    """Evaluate what this thread can, as :func:`evaluate_arrays`; leave what another thread made and did not evaluate.

    Some models assign their arrays anew whenever they compute, as Gemma 3n clips its coefficients: the thread that
    computes evaluates those.
    """
    try:
        evaluate_arrays(root)
    except RuntimeError:
        for array in arrays(root):
            with suppress(RuntimeError):
                mx.eval(array)
