"""What to write in a client to reach a server: lines to copy into a terminal or a program."""

from __future__ import annotations

import json
import shlex
from typing import Any

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Say hello."}]
KEY_VARIABLE = "KVLAB_API_KEY"
CLAUDE_CODE = "Claude Code"


def client_snippets(url: str, model: str, *, needs_key: bool) -> dict[str, str]:
    """Return how curl, the ``openai`` package, Claude Code and other agents use the server at ``url``, by client.

    A key is named by the environment variable that holds it, never written out.
    """
    url = _reachable(url)
    chat = {"model": model, "messages": MESSAGES, "max_tokens": 64}
    header = f' -H "authorization: Bearer ${KEY_VARIABLE}"' if needs_key else ""
    imports, key = ("import os; ", f"os.environ[{KEY_VARIABLE!r}]") if needs_key else ("", "'-'")
    shell_key = f"${KEY_VARIABLE}" if needs_key else "-"
    arguments = ", ".join(f"{name}={value!r}" for name, value in chat.items())
    return {
        "curl": f"curl {url}/v1/chat/completions -H 'content-type: application/json'{header} "
        f"-d {shlex.quote(json.dumps(chat))}",
        "Python": f"{imports}from openai import OpenAI; client = OpenAI(base_url='{url}/v1', api_key={key}); "
        f"print(client.chat.completions.create({arguments}).choices[0].message.content)",
        CLAUDE_CODE: f"ANTHROPIC_BASE_URL={url} ANTHROPIC_AUTH_TOKEN={shell_key} claude",
        "other agents": f"OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={shell_key}, and as model {shlex.quote(model)}",
    }


def _reachable(url: str) -> str:
    """Return an address to connect to: one that listens everywhere is reached on loopback from this machine."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
