"""Items in the formats of BFCL and tau-bench, written for tests."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

BOOK = {
    "name": "book_table",
    "description": "Book a table.",
    "parameters": {
        "type": "dict",
        "properties": {
            "place": {"type": "string", "description": "The town."},
            "seats": {"type": "integer", "description": "How many."},
            "price": {"type": "float", "description": "At most."},
            "note": {"type": "any"},
            "at": {"type": "tuple", "items": {"type": "float"}},
        },
        "required": ["place", "seats"],
    },
}
ROLL = {
    "name": "roll",
    "description": "Roll dice.",
    "parameters": {"type": "dict", "properties": {"dice": {"type": "integer"}}, "required": ["dice"]},
}


def _asked(text: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}]]


ITEMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"id": "one_0", "question": _asked("A table for two in Rome, please."), "function": [BOOK]},
        {
            "id": "one_0",
            "ground_truth": [{"book_table": {"place": ["Rome", "Roma"], "seats": [2], "price": ["", 9.5]}}],
        },
    ),
    (
        {"id": "two_0", "question": _asked("Roll 3 dice, then 5."), "function": [ROLL, BOOK]},
        {"id": "two_0", "ground_truth": [{"roll": {"dice": [3]}}, {"roll": {"dice": [5]}}]},
    ),
    (
        {"id": "one_1", "question": _asked("Roll 12 dice."), "function": [ROLL]},
        {"id": "one_1", "ground_truth": [{"roll": {"dice": [12]}}]},
    ),
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_item",
            "description": "Find an item.",
            "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
        },
    }
]


def _call(identifier: str, code: str) -> dict[str, Any]:
    function = {"name": "find_item", "arguments": json.dumps({"code": code})}
    call = {"id": identifier, "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _found(identifier: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": identifier, "name": "find_item", "content": text}


TRAJECTORIES: list[dict[str, Any]] = [
    {
        "task_id": 0,
        "reward": 1.0,
        "traj": [
            {"role": "system", "content": "You help in a shop."},
            {"role": "user", "content": "I look for a lamp."},
            {"role": "assistant", "content": "Which code is on it?"},
            {"role": "user", "content": "It is #417, or #418."},
            _call("call_1", "#417"),
            _found("call_1", "nothing"),
            _call("call_2", "#418"),
            _found("call_2", "a lamp"),
            {"role": "assistant", "content": "It is a lamp."},
        ],
    },
    {
        "task_id": 1,
        "reward": 0.0,
        "traj": [
            {"role": "system", "content": "You help in a shop."},
            {"role": "user", "content": "What is #023?"},
            _call("call_3", "#023"),
        ],
    },
]


def write_bfcl(path: Path) -> Path:
    """Write ITEMS, one a line, and their answers in `possible_answer/` beside."""
    beside = path.parent / "possible_answer"
    beside.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item, _ in ITEMS))
    (beside / path.name).write_text("".join(json.dumps(answer) + "\n" for _, answer in ITEMS))
    return path


def write_trajectories(path: Path) -> Path:
    """Write TRAJECTORIES as tau-bench does, in one array or one a line, and their tools beside."""
    lines = path.name.removesuffix(".xz").endswith(".jsonl")
    text = "\n".join(map(json.dumps, TRAJECTORIES)) if lines else json.dumps(TRAJECTORIES)
    path.write_bytes(lzma.compress(text.encode()) if path.suffix == ".xz" else text.encode())
    stem = path.name.split(".")[0].rsplit("_", 1)[0]
    path.with_name(f"{stem}_tools.json").write_text(json.dumps(TOOLS))
    return path
