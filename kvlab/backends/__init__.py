"""The device under MLX: which attention, exponentials and threads are the quickest on it."""
