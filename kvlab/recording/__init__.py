"""Recording: events, the recorder that keeps them, and frames in Zarr."""
