"""Structured answers: grammars, JSON schemas, tool calls."""
