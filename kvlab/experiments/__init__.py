"""Experiments: a policy on a workload, several policies on the same prompts, and sweeps from files.

``run`` holds the functions to call. ``runner`` serves a workload's prompts under any policy: ``conversations`` through
a decoder, ``restart`` with the second half in a new process (``worker``). ``config`` reads a sweep from a file,
``sweep`` runs its cells and keeps them in a ``result_store``.
"""

from kvlab.experiments.run import Run, compare, compare_command, run

__all__ = ["Run", "compare", "compare_command", "run"]
