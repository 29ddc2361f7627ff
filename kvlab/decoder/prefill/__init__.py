"""Prefill beside decoding sequences: in chunks, within a time budget."""
