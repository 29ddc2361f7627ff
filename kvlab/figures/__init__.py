"""The figures of the docs: rebuilt from saved rows, which experiments in ``experiments/`` give.

``declared`` lists them; ``saved`` reads and writes their rows; ``claim`` is what each says; ``draw`` makes the files;
``check`` tells whether files, rows and claims still belong together.
"""
