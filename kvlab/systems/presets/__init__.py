"""The presets: one file a server, a class for each variant and engine."""
