"""The figures of the docs: rebuilt from saved rows, which experiments in ``experiments/`` give.

``declared`` and ``on_smollm2`` list them; ``saved`` reads and writes their rows; ``claim`` is what each says; ``draw``
makes the files; ``pages`` writes their numbers into README and docs; ``check`` tells whether files, rows and claims
still belong together, ``stale`` whether code that matters has changed since the rows were measured.
"""
