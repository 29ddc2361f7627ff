"""Scorers: retention by a score per token and head. One file a method."""
