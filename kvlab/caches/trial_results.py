"""What kvlab notes on a model: that its attention is hooked, and what trials have found."""

from __future__ import annotations

import mlx.nn as nn

NOTE_PREFIX = "_kvlab_"
"""How the names of such attributes begin; they are no part of the model's fingerprint."""
TRIED_ATTRIBUTE = "_kvlab_tried"
"""Attribute with the fingerprint of the model that the others were found for."""


def forget_results_of_another(model: nn.Module, fingerprint: str) -> None:
    """Delete what was noted before the model was changed to the one with this fingerprint, so that it is tried anew."""
    notes = [name for name in vars(model) if name.startswith(NOTE_PREFIX)]
    if getattr(model, TRIED_ATTRIBUTE, None) == fingerprint:
        return
    for name in notes:
        object.__delattr__(model, name)
    object.__setattr__(model, TRIED_ATTRIBUTE, fingerprint)
