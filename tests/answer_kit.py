"""Answers as models of each family write them, and what the parser makes of them."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kvlab.server.generation.harmony_parser import HarmonyParser, MuseParser
from kvlab.server.generation.output_parser import CONTENT, REASONING, CallReader, OutputParser, OutputPiece
from kvlab.server.structured.tool_families.choose import tool_format
from kvlab.server.structured.tool_formats import ToolFormat

Arguments = Mapping[str, Any]


class FamilyTokenizer:
    """A tokenizer of a model family, as far as the parsers look at it."""

    def __init__(self, template: str, library: str = "", vocabulary: Iterable[str] = (), **options: Any) -> None:
        self.chat_template = template
        self.init_kwargs = options | ({"tool_parser_type": library} if library else {})
        self.has_tool_calling = bool(library)
        self.tool_parser = (
            importlib.import_module(f"mlx_lm.tool_parsers.{library}").parse_tool_call if library else None
        )
        self.has_thinking = False
        self._vocabulary = {text: i for i, text in enumerate(vocabulary)}

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary


class NoTokens:
    """A detokenizer of an answer that is fed as text."""

    last_segment = ""

    def finalize(self) -> None:
        return None


class Family(NamedTuple):
    """How a family's template writes an answer's calls; ``ambiguous`` are values that its form cannot hold."""

    name: str
    tokenizer: FamilyTokenizer
    write: Callable[[Sequence[tuple[str, Arguments]]], str]
    ambiguous: str = r"(?!)"
    bare: bool = False
    most_calls: int = 3

    @property
    def format(self) -> ToolFormat:
        return tool_format(self.tokenizer)


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def raw(value: Any) -> str:
    """A value in tags: strings as they are, other values as JSON."""
    return value if isinstance(value, str) else dumps(value)


def objects(name_key: str = "name", arguments_key: str = "arguments") -> Callable[[tuple[str, Arguments]], str]:
    return lambda call: dumps({name_key: call[0], arguments_key: call[1]})


def each(before: str, after: str, one: Callable[[tuple[str, Arguments]], str], between: str = "\n") -> Any:
    return lambda calls: between.join(before + one(call) + after for call in calls)


def listed(before: str, after: str, one: Callable[[tuple[str, Arguments]], str]) -> Any:
    return lambda calls: before + "[" + ", ".join(map(one, calls)) + "]" + after


def tagged(call: str, key: str, value_end: str, call_end: str) -> Callable[[tuple[str, Arguments]], str]:
    def write(one: tuple[str, Arguments]) -> str:
        values = [key.replace("KEY", name) + raw(value) + value_end for name, value in one[1].items()]
        return call.replace("NAME", one[0]) + "".join(values) + call_end

    return write


def cdata(one: tuple[str, Arguments]) -> str:
    values = [f'<param name="{key}"><![CDATA[{raw(value)}]]></param>' for key, value in one[1].items()]
    return f'<function name="{one[0]}">{"".join(values)}</function>'


def python(one: tuple[str, Arguments]) -> str:
    return f"{one[0]}({', '.join(f'{key}={dumps(value)}' for key, value in one[1].items())})"


def delimited(quote: str) -> Callable[[tuple[str, Arguments]], str]:
    def value(item: Any) -> str:
        if isinstance(item, str):
            return quote + item + quote
        if isinstance(item, list):
            return "[" + ",".join(map(value, item)) + "]"
        if isinstance(item, dict):
            return "{" + ",".join(f"{key}:{value(part)}" for key, part in item.items()) + "}"
        return dumps(item)

    return lambda one: f"call:{one[0]}{value(dict(one[1]))}"


def dsml(one: tuple[str, Arguments]) -> str:
    kinds = {key: str(isinstance(value, str)).lower() for key, value in one[1].items()}
    values = [
        f'<｜DSML｜parameter name="{key}" string="{kinds[key]}">{raw(value)}</｜DSML｜parameter>\n'
        for key, value in one[1].items()
    ]
    return f'<｜DSML｜invoke name="{one[0]}">\n{"".join(values)}</｜DSML｜invoke>'


def kimi_k3(one: tuple[str, Arguments]) -> str:
    kinds = {str: "string", bool: "boolean", int: "integer", list: "array", dict: "object"}
    values = [
        f'<|open|>argument key="{key}" type="{kinds[type(value)]}"<|sep|>{raw(value)}<|close|>argument<|sep|>'
        for key, value in one[1].items()
    ]
    return f'<|open|>call tool="{one[0]}" index="1"<|sep|>{"".join(values)}<|close|>call<|sep|>'


def enclosed(before: str, after: str, one: Callable[[tuple[str, Arguments]], str]) -> Any:
    return lambda calls: before + "\n".join(map(one, calls)) + after


def harmony(calls: Sequence[tuple[str, Arguments]]) -> str:
    [(name, arguments)] = calls
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{dumps(arguments)}<|call|>"


HARMONY_TEMPLATE = "<|start|>assistant<|channel|>analysis<|message|>to=functions."
V3_CALL = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
V31_CALL = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
K2_CALL = "<|tool_call_begin|>functions.{}:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
GLM = tagged("NAME\n", "<arg_key>KEY</arg_key>\n<arg_value>", "</arg_value>\n", "")
GLM_47 = tagged("NAME", "<arg_key>KEY</arg_key><arg_value>", "</arg_value>", "")
LONGCAT = tagged("NAME\n", "<longcat_arg_key>KEY</longcat_arg_key>\n<longcat_arg_value>", "</longcat_arg_value>\n", "")
QWEN = tagged("<function=NAME>\n", "<parameter=KEY>\n", "\n</parameter>\n", "</function>")
SEED = tagged("<function=NAME>\n", "<parameter=KEY>", "</parameter>\n", "</function>")
MINIMAX = tagged('<invoke name="NAME">\n', '<parameter name="KEY">', "</parameter>\n", "</invoke>")
MUSE = tagged('<atem:invoke name="NAME">\n', '<atem:parameter name="KEY">', "</atem:parameter>\n", "</atem:invoke>")


def formatted(text: str) -> Callable[[tuple[str, Arguments]], str]:
    return lambda one: text.format(one[0], dumps(one[1]))


FAMILIES = [
    Family("hermes", FamilyTokenizer("<tool_call>", "json_tools"), each("<tool_call>\n", "\n</tool_call>", objects())),
    Family(
        "qwen3-coder",
        FamilyTokenizer("", "qwen3_coder"),
        each("<tool_call>\n", "\n</tool_call>", QWEN),
        r"</parameter>\s*(<parameter=[^>\n]+>|</function>)",
    ),
    Family(
        "seed-oss",
        FamilyTokenizer("<seed:tool_call>"),
        each("<seed:tool_call>\n", "\n</seed:tool_call>", SEED),
        r"</parameter>\s*(<parameter=[^>\n]+>|</function>)",
    ),
    Family(
        "glm",
        FamilyTokenizer("<arg_key>{{ k }}</arg_key>\n<arg_value>", "glm47"),
        each("<tool_call>", "</tool_call>", GLM),
        r"</arg_value>\s*(<arg_key>[^<]+</arg_key>\s*<arg_value>|</tool_call>)",
    ),
    Family(
        "glm",
        FamilyTokenizer("<arg_key>{{ k }}</arg_key><arg_value>", "glm47"),
        each("<tool_call>", "</tool_call>", GLM_47, between=""),
        r"</arg_value>\s*(<arg_key>[^<]+</arg_key>\s*<arg_value>|</tool_call>)",
    ),
    Family(
        "longcat",
        FamilyTokenizer("", "longcat"),
        each("<longcat_tool_call>", "</longcat_tool_call>", LONGCAT),
        r"</longcat_arg_value>\s*(<longcat_arg_key>|</longcat_tool_call>)",
    ),
    Family(
        "minimax-m2",
        FamilyTokenizer("", "minimax_m2"),
        enclosed("<minimax:tool_call>\n", "\n</minimax:tool_call>", MINIMAX),
        r"</parameter>\s*(<parameter\s+name\s*=|</invoke>)",
    ),
    Family("minicpm5", FamilyTokenizer("", "minicpm5"), lambda calls: "\n".join(map(cdata, calls)), r"\]\]>"),
    Family(
        "muse-spark",
        FamilyTokenizer("", "muse_spark"),
        enclosed("<atem:function_calls>\n", "\n</atem:function_calls>", MUSE),
        r"</atem:parameter>\s*(<atem:parameter|</atem:invoke>)",
    ),
    Family(
        "kimi-k3",
        FamilyTokenizer("", "kimi_k3"),
        enclosed("<|open|>tools<|sep|>", "<|close|>tools<|sep|>", kimi_k3),
        r"<\|close\|>argument<\|sep\|>",
    ),
    Family(
        "deepseek-v3.2",
        FamilyTokenizer("", chat_template_type="deepseek_v32"),
        enclosed("<｜DSML｜function_calls>\n", "\n</｜DSML｜function_calls>", dsml),
        r"</｜DSML｜parameter>",
    ),
    Family(
        "deepseek-v3",
        FamilyTokenizer("<｜tool▁calls▁begin｜> ```json"),
        enclosed(
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
            formatted(V3_CALL),
        ),
    ),
    Family(
        "deepseek-v3.1",
        FamilyTokenizer("<｜tool▁calls▁begin｜>"),
        lambda calls: "<｜tool▁calls▁begin｜>" + "".join(map(formatted(V31_CALL), calls)) + "<｜tool▁calls▁end｜>",
    ),
    Family(
        "kimi-k2",
        FamilyTokenizer("", "kimi_k2"),
        enclosed("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", formatted(K2_CALL)),
    ),
    Family("mistral", FamilyTokenizer("[TOOL_CALLS]", "mistral"), listed("[TOOL_CALLS]", "", objects())),
    Family(
        "mistral-args",
        FamilyTokenizer("[TOOL_CALLS] [ARGS]", "mistral"),
        each("[TOOL_CALLS]", "", lambda one: f"{one[0]}[ARGS]{dumps(one[1])}", between=""),
    ),
    Family(
        "mistral-args",
        FamilyTokenizer("[TOOL_CALLS] [ARGS] [CALL_ID]", "mistral"),
        each("[TOOL_CALLS]", "", lambda one: f"{one[0]}[CALL_ID]123456789[ARGS]{dumps(one[1])}", between=""),
    ),
    Family(
        "pythonic",
        FamilyTokenizer("", "pythonic"),
        listed("<|tool_call_start|>", "<|tool_call_end|>", python),
    ),
    Family(
        "olmo3",
        FamilyTokenizer("<function_calls>"),
        enclosed("<function_calls>\n", "\n</function_calls>", python),
    ),
    Family(
        "gemma4",
        FamilyTokenizer("", "gemma4"),
        each("<|tool_call>", "<tool_call|>", delimited('<|"|>'), between=""),
        r'<\|"\|>',
    ),
    Family(
        "function-gemma",
        FamilyTokenizer("", "function_gemma"),
        each("<start_function_call>", "<end_function_call>", delimited("<escape>"), between=""),
        r"<escape>",
    ),
    Family("nemotron", FamilyTokenizer("<TOOLCALL>"), listed("<TOOLCALL>", "</TOOLCALL>", objects())),
    Family(
        "command",
        FamilyTokenizer("<|START_ACTION|>"),
        listed("<|START_ACTION|>", "<|END_ACTION|>", objects("tool_name", "parameters")),
    ),
    Family(
        "internlm",
        FamilyTokenizer("<|action_start|><|plugin|>"),
        each("<|action_start|><|plugin|>\n", "<|action_end|>", objects("name", "parameters")),
    ),
    Family("hunyuan", FamilyTokenizer("<tool_calls>["), listed("<tool_calls>", "</tool_calls>", objects())),
    Family("minimax-m1", FamilyTokenizer("<tool_calls>"), enclosed("<tool_calls>\n", "\n</tool_calls>", objects())),
    Family(
        "phi4-mini",
        FamilyTokenizer("<|tool_call|> <|/tool_call|>"),
        listed("<|tool_call|>", "<|/tool_call|>", objects()),
    ),
    Family("phi4-mini", FamilyTokenizer("<|tool_call|> <|/tool_call|>"), listed("functools", "", objects())),
    Family(
        "phi4-mini",
        FamilyTokenizer("", vocabulary=("<|tool_call|>", "<|/tool_call|>")),
        each("<tool_call>\n", "\n</tool_call>", objects()),
    ),
    Family(
        "phi4-mini",
        FamilyTokenizer("", vocabulary=("<|tool_call|>", "<|/tool_call|>")),
        listed("<|tool_call|>", "<|/tool_call|>", objects()),
    ),
    Family("granite", FamilyTokenizer("<|tool_call|>"), listed("<|tool_call|>", "", objects())),
    Family(
        "llama3",
        FamilyTokenizer("<|python_tag|>"),
        lambda calls: "; ".join(map(objects("name", "parameters"), calls)),
        bare=True,
    ),
    Family(
        "llama3",
        FamilyTokenizer("<|python_tag|>"),
        lambda calls: "<|python_tag|>" + "; ".join(map(objects("name", "parameters"), calls)),
    ),
    Family("llama4", FamilyTokenizer("<|header_start|>"), listed("", "", python), bare=True),
    Family("llama4", FamilyTokenizer("<|python_start|>"), listed("<|python_start|>", "<|python_end|>", python)),
    Family("harmony", FamilyTokenizer(HARMONY_TEMPLATE), harmony, bare=True, most_calls=1),
]
"""Every form, some families in two."""

PROPERTIES = {
    "text": {"type": "string"},
    "more": {"type": "string"},
    "count": {"type": "integer"},
    "flag": {"type": "boolean"},
    "items": {"type": "array", "items": {"type": "string"}},
    "inner": {"type": "object"},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": PROPERTIES}}}
    for name in ("write_file", "find")
]


PARSERS: dict[str, type[OutputParser]] = {"harmony": HarmonyParser, "muse-spark": MuseParser}


class Answer(NamedTuple):
    """What a client gets: text, reasoning, calls with parsed arguments; and the parser."""

    content: str
    reasoning: str
    calls: list[tuple[str, Any]]
    parser: OutputParser


def parser_of(family: ToolFormat | None, **options: Any) -> OutputParser:
    kind = PARSERS.get(family.family if family else "", OutputParser)
    offered = options.pop("tools", TOOLS)
    trusted = options.pop("trusted", False)
    return kind(NoTokens(), calls=CallReader(family, offered, trusted) if family and offered else None, **options)


def chunks(text: str, cuts: Sequence[int]) -> list[str]:
    """The text in pieces whose lengths go round in ``cuts``."""
    made, at, i = [], 0, 0
    while at < len(text):
        size = max(1, cuts[i % len(cuts)]) if cuts else len(text)
        made.append(text[at : at + size])
        at, i = at + size, i + 1
    return made


def read(
    family: ToolFormat | None, text: str, cuts: Sequence[int] = (), *, limited: bool = False, **options: Any
) -> Answer:
    """Parse an answer that comes in pieces."""
    parser = parser_of(family, **options)
    pieces: list[OutputPiece] = []
    for chunk in chunks(text, cuts):
        pieces += parser.feed(chunk)
    pieces += parser.finish(limited=limited)
    calls = [(call.name, json.loads(call.arguments)) for piece in pieces for call in piece.calls]
    texts = {kind: "".join(piece.text for piece in pieces if piece.kind == kind) for kind in (CONTENT, REASONING)}
    return Answer(texts[CONTENT], texts[REASONING], calls, parser)


def holds_ambiguous(family: Family, arguments: Arguments) -> bool:
    return any(re.search(family.ambiguous, raw(value)) for value in arguments.values())
