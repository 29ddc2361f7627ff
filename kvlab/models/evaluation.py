"""Evaluates everything a model holds, so that any thread can run it."""

from __future__ import annotations

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
