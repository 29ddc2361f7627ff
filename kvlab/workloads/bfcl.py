"""The format of the Berkeley Function Calling Leaderboard (BFCL): questions, function schemas, and accepted calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvlab.errors import WorkloadError
from kvlab.workloads.base import Message, Tool

JSON_TYPES = {"dict": "object", "float": "number", "double": "number", "long": "integer", "tuple": "array"}
"""BFCL's types of parameters that JSON Schema has under another name; ``any`` has none."""
ANSWERS = "possible_answer"
"""The folder beside a file of questions that holds the answers, under the same name."""

Call = tuple[str, dict[str, Any]]


def is_bfcl(entry: Any) -> bool:
    """Return whether a JSON value is an item of BFCL."""
    return isinstance(entry, Mapping) and "question" in entry and "function" in entry


def tools_of(entry: Mapping[str, Any]) -> tuple[Tool, ...]:
    """Return the functions of an item as tools in OpenAI's form."""
    functions = entry["function"]
    listed = [functions] if isinstance(functions, Mapping) else functions
    made = []
    for function in listed:
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise WorkloadError('"function" must be a list of {"name", "description", "parameters"}')
        made.append({"type": "function", "function": {**function, "parameters": _schema(function.get("parameters"))}})
    return tuple(made)


def messages_of(entry: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return the messages of an item: those of its first turn, which is the only one that has an answer here."""
    question = entry["question"]
    turn = question[0] if isinstance(question, list) and question and isinstance(question[0], list) else question
    if isinstance(turn, str):
        turn = [{"role": "user", "content": turn}]
    if not isinstance(turn, list) or not all(isinstance(one, Mapping) and "role" in one for one in turn) or not turn:
        raise WorkloadError('"question" must be a list of turns, each a list of messages')
    return tuple(dict(one) for one in turn)


def calls_of_answer(entry: Mapping[str, Any]) -> list[Call]:
    """Return the calls of an answer, with the first accepted value of each argument.

    An argument whose first accepted value is empty text may be left out, and is.
    """
    truth = entry.get("ground_truth")
    if not isinstance(truth, list) or not truth or not all(isinstance(one, Mapping) and len(one) == 1 for one in truth):
        raise WorkloadError('"ground_truth" must be a list of {name: {argument: [accepted values]}}')
    calls = []
    for one in truth:
        ((name, accepted),) = one.items()
        if not isinstance(accepted, Mapping) or not all(isinstance(values, list) for values in accepted.values()):
            raise WorkloadError(f'"ground_truth" of {name!r} must give a list of accepted values for each argument')
        calls.append((name, {key: _first(values) for key, values in accepted.items() if values and values[0] != ""}))
    return calls


def answers_beside(path: Path, text: str) -> dict[str, Mapping[str, Any]]:
    """Read the answers to a file of questions, by id, from JSON Lines."""
    answers = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                entry = json.loads(line)
                answers[str(entry["id"])] = entry
            except (ValueError, KeyError, TypeError) as error:
                raise WorkloadError(
                    f'{path}:{number}: expected {{"id", "ground_truth"}} as JSON ({error!r})'
                ) from error
    return answers


def _first(values: list[Any]) -> Any:
    """Return the first accepted value; the values inside of objects are lists of accepted values again."""
    value = values[0]
    if isinstance(value, Mapping):
        return {
            key: _first(inner) if isinstance(inner, list) and inner else inner
            for key, inner in value.items()
            if inner not in ([""], [])
        }
    if isinstance(value, list):
        return [_first([item]) if isinstance(item, Mapping) else item for item in value]
    return value


def _schema(schema: Any) -> Any:
    """Return a schema with JSON Schema's own names of types."""
    if isinstance(schema, list):
        return [_schema(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type" and isinstance(value, str):
            if value != "any":
                made[key] = JSON_TYPES.get(value, value)
        elif key == "properties" and isinstance(value, Mapping):
            made[key] = {name: _schema(inner) for name, inner in value.items()}
        elif key in ("default", "enum", "description"):
            made[key] = value
        else:
            made[key] = _schema(value)
    return made
