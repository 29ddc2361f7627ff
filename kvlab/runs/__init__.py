"""One run: a workload under one policy, turn by turn, with a restart in the middle where that is asked for.

``turns`` serves conversations through a decoder, ``restart`` has the second half served by a new process (``child``),
``harness`` does both for any policy over the same prompts and gives tidy rows.
"""
