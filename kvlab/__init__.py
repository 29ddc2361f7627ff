"""kvlab: a laboratory for KV caching on MLX."""

from kvlab.backend import prepare

prepare()  # before anything imports MLX: see kvlab/backend.py

__version__ = "0.1.0"
