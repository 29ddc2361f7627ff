"""What `kvlab serve` tells people to write: it can be pasted as it is, whatever the model is called."""

from __future__ import annotations

import ast
import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.server.snippets import CLAUDE_CODE, KEY_VARIABLE, client_snippets

URL = "http://127.0.0.1:8080"
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@given(NAMES, st.booleans())
def test_any_name_of_a_model_survives_shell_json_and_python(name: str, needs_key: bool) -> None:
    snippets = client_snippets(URL, name, needs_key=needs_key)
    words = shlex.split(snippets["curl"])
    assert json.loads(words[words.index("-d") + 1])["model"] == name
    calls = [node for node in ast.walk(ast.parse(snippets["Python"])) if isinstance(node, ast.Call)]
    [model] = [word.value for call in calls for word in call.keywords if word.arg == "model"]
    assert ast.literal_eval(model) == name
    assert shlex.split(snippets["other agents"])[-1] == name
    assert all("\n" not in line for line in snippets.values())


@pytest.mark.parametrize("needs_key", [True, False])
def test_a_key_is_asked_for_where_one_is_needed_and_never_shown(needs_key: bool) -> None:
    for client, line in client_snippets(URL, "tiny", needs_key=needs_key).items():
        assert (KEY_VARIABLE in line) == needs_key, client


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("http://[::]:80", "http://[::1]:80"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("http://192.168.0.7:9", "http://192.168.0.7:9"),
    ],
)
def test_addresses_are_those_that_can_be_connected_to(url: str, shown: str) -> None:
    snippets = client_snippets(url, "tiny", needs_key=False)
    assert f"curl {shown}/v1/" in snippets["curl"] and f"base_url='{shown}/v1'" in snippets["Python"]
    assert f"ANTHROPIC_BASE_URL={shown} " in snippets[CLAUDE_CODE]
