"""``ModelWatch``: notices that a model computes something else than it did."""

from __future__ import annotations

from kvlab.models.fingerprints import Fingerprints


class ModelWatch:
    """Holds the fingerprint that a model had when the watch began, and notices when it becomes another one.

    Weights that the model lets go stay in memory until the next look, or until the watch ends.

    Attributes:
        fingerprint: that of the model when the watch began.
    """

    def __init__(self, fingerprints: Fingerprints) -> None:
        self._fingerprints = fingerprints
        self.fingerprint, self._state = fingerprints.take()
        self._has_changed = False

    def may_have_changed(self) -> bool:
        """Return whether anything was assigned since the last look, of the same value or not. Evaluates nothing."""
        return self._has_changed or not self._state.is_current()

    def has_changed(self) -> bool:
        """Return whether the fingerprint was ever another one. It reads what was assigned since the last look.

        A change that is taken back counts too, if a look was between: KV may have been computed meanwhile.
        """
        if not self._has_changed and not self._state.is_current():
            try:
                fingerprint, self._state = self._fingerprints.take()
            except RuntimeError:  # an array that another thread made and did not evaluate is no array of before
                self._has_changed = True
            else:
                self._has_changed = fingerprint != self.fingerprint
        return self._has_changed
