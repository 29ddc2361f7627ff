"""Compiles schemas in a process of its own, which a timer ends: run as a script, see :mod:`trial`.

Reads one JSON document from stdin, writes one JSON line for each schema to stdout as it is done. It imports nothing of
kvlab, so that it starts fast.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from llguidance._lib import LLParserLimits

STACK_BYTES = 64 << 20
MAX_ROUNDS = 12
UNSATISFIABLE = ("Unsatisfiable schema", "no value satisfies it")
TOO_LONG = "takes too long"
NO_TEXT = "Unsatisfiable schema: no text has its pattern, format and length together"


class Trial:
    """Compiles schemas under the options and limits of the server."""

    def __init__(self, guidance: Mapping[str, Any], limits: Mapping[str, Any], mask_seconds: float) -> None:
        self.guidance, self.limits, self.mask_seconds = guidance, LLParserLimits(**limits), mask_seconds
        self.tokenizer = LLTokenizer("byte")

    def error(self, schema: Mapping[str, Any]) -> str:
        """Return why a schema does not compile, in one line; empty if it does."""
        lark = "%llguidance {}\nstart: json\njson: %json " + json.dumps({**schema, "x-guidance": self.guidance})
        matcher = LLMatcher(self.tokenizer, lark, log_level=0, limits=self.limits)
        if not matcher.is_error():
            began = time.process_time()
            matcher.compute_bitmask()
            if time.process_time() - began > self.mask_seconds:
                return "each token takes too long"
            if not matcher.is_error():
                return ""
            return "no value satisfies it"
        first = matcher.get_error().split("\n")[0]
        if "Regex is empty" in first:  # the rest quotes llguidance's automaton
            return NO_TEXT
        first = first.partition("failed to compile JSON schema: ")[2] or first
        return first.partition(": (And ")[0].partition(":  (And ")[0]

    def locate(self, schema: dict[str, Any]) -> tuple[str, Any, Any, str]:
        """Return path, container, key and error of the innermost part of ``schema`` that does not compile alone.

        An option or a property may be one that nothing satisfies: such a part counts only where nothing satisfies the
        whole either, and something would without it.
        """
        definitions = {"$defs": schema["$defs"]} if "$defs" in schema else {}
        path, error = "", self.error(schema)
        holder: Any = None
        key: Any = None
        node = schema
        while error:
            for name, container, child_key in parts(node, not path):
                child = container[child_key]
                if isinstance(child, bool) or child == {}:
                    continue
                alone = child if isinstance(child, dict) else {"type": "null", "not": {}}
                found = self.error({**alone, **definitions})
                if not found or kind(found) != kind(error):
                    continue
                if kind(error) != "unsatisfiable" or self.is_cause(node, definitions, container, child_key):
                    path, holder, key, error, node = path + name, container, child_key, found, child
                    break
            else:
                return path, holder, key, error
        return path, holder, key, ""

    def is_cause(self, node: dict[str, Any], definitions: Mapping[str, Any], container: Any, key: Any) -> bool:
        """True if something satisfies ``node`` with this part opened."""
        part, container[key] = container[key], {}
        try:
            return kind(self.error({**node, **definitions})) != "unsatisfiable"
        finally:
            container[key] = part

    def repair(self, schema: dict[str, Any], strict: bool) -> dict[str, Any]:
        """Open the parts that do not compile; return the schema, the parts and, where there is one, the error."""
        opened: list[list[str]] = []
        for _ in range(MAX_ROUNDS):
            path, holder, key, error = self.locate(schema)
            if not error:
                return {"schema": schema, "opened": opened, "error": None}
            if strict and kind(error):
                return {"schema": schema, "opened": opened, "error": [path, error]}
            opened.append([path, error])
            if holder is None:
                schema = {"type": "object"} if schema.get("type") == "object" else {}
            else:
                holder[key] = {}
        return {"schema": {}, "opened": [["", "it has too many parts that do not compile"]], "error": None}


def kind(error: str) -> str:
    """Return what a client did wrong; empty for what only the compiler cannot do."""
    if any(words in error for words in UNSATISFIABLE):
        return "unsatisfiable"
    return "too long" if TOO_LONG in error else ""


def parts(node: dict[str, Any], is_root: bool) -> Iterator[tuple[str, Any, Any]]:
    """Yield pointer, container and key of each schema inside a schema."""
    for key in ("properties", "patternProperties", *(("$defs",) if is_root else ())):
        for name in list(node.get(key) or ()):
            yield f"/{key}/{name.replace('~', '~0').replace('/', '~1')}", node[key], name
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for i in range(len(node.get(key) or ())):
            yield f"/{key}/{i}", node[key], i
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield f"/{key}", node, key


def main() -> None:
    work = json.load(sys.stdin)
    with contextlib.suppress(OSError):
        os.nice(5)
    # The signal's default action ends the process, also within native code.
    signal.setitimer(signal.ITIMER_PROF, work["cpu_seconds"])
    trial = Trial(work["guidance"], work["limits"], work["mask_seconds"])
    for schema in work["schemas"]:
        print(json.dumps(trial.repair(schema, work["strict"])), flush=True)


if __name__ == "__main__":
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
