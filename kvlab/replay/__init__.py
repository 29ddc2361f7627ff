"""Replays traces over replacement policies, without a model."""
