"""How a request finds earlier KV: one file a reuse module."""
