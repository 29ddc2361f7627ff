"""Promote a policy to an endpoint that speaks OpenAI's and Anthropic's protocols."""

from kvlab.server.notebook import Handle, serve
from kvlab.server.settings import Settings

__all__ = ["Handle", "Settings", "serve"]
