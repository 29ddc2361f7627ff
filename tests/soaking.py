"""Small counts for every run of the tests, full ones for ``pytest -m soak``."""

import pytest


def times(few: int) -> pytest.MarkDecorator:
    """Run a test with ``count`` of ``few`` in CI, and of ten times as many under ``-m soak``."""
    return pytest.mark.parametrize("count", [few, pytest.param(10 * few, marks=pytest.mark.soak)])
