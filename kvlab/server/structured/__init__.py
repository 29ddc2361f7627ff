"""Answers of a given form: grammars, JSON schemas, tool calls."""
