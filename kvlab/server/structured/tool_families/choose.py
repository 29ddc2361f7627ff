"""Which family a model's calls belong to, by its chat template and its vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvlab.server.structured.tool_families.bare_calls import BareCalls
from kvlab.server.structured.tool_families.delimited_calls import DelimitedCalls
from kvlab.server.structured.tool_families.harmony_calls import HarmonyCalls
from kvlab.server.structured.tool_families.headed_calls import HeadedCalls
from kvlab.server.structured.tool_families.json_calls import JsonCalls
from kvlab.server.structured.tool_families.python_calls import PythonCalls
from kvlab.server.structured.tool_families.tagged_calls import TaggedCalls, Tags
from kvlab.server.structured.tool_formats import ToolFormat

DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
DSML = "｜DSML｜"
QWEN_TAGS = Tags(
    call="<function={name}>\n",
    call_pattern=r"<function=(?P<name>[^>\n]+)>",
    call_end="</function>",
    key="<parameter={key}>\n",
    key_pattern=r"<parameter=(?P<key>[^>\n]+)>",
    value_end="</parameter>",
    on_own_lines=True,
)
SEED_TAGS = QWEN_TAGS._replace(key="<parameter={key}>", on_own_lines=False)
ATTRIBUTE = r"\s*=\s*[\"']?(?P<{}>[^\"'>]+)[\"']?"
MINIMAX_TAGS = Tags(
    call='<invoke name="{name}">\n',
    call_pattern=rf"<invoke\s+name{ATTRIBUTE.format('name')}\s*>",
    call_end="</invoke>",
    key='<parameter name="{key}">',
    key_pattern=rf"<parameter\s+name{ATTRIBUTE.format('key')}\s*>",
    value_end="</parameter>",
)
MINICPM_TAGS = Tags(
    call='"{name}">',
    call_pattern=r"\s*[\"']?(?P<name>[^\"'>]+)[\"']?\s*>",
    call_end="",
    key='<param name="{key}">',
    key_pattern=rf"<param\s+name{ATTRIBUTE.format('key')}\s*>",
    value_end="</param>",
    between_values="",
    cdata=True,
)
MUSE_TAGS = Tags(
    call='<atem:invoke name="{name}">\n',
    call_pattern=r"<atem:invoke\b[^>]*?\bname=\"(?P<name>[^\"]+)\"[^>]*>",
    call_end="</atem:invoke>",
    key='<atem:parameter name="{key}">',
    key_pattern=r"<atem:parameter\b[^>]*?\bname=\"(?P<key>[^\"]+)\"[^>]*>",
    value_end="</atem:parameter>",
)
DSML_TAGS = Tags(
    call=f'<{DSML}invoke name="{{name}}">\n',
    call_pattern=rf"<{DSML}invoke\s+name=\"(?P<name>[^\"]+)\"\s*>",
    call_end=f"</{DSML}invoke>",
    key=f'<{DSML}parameter name="{{key}}" string="true">',
    key_pattern=rf"<{DSML}parameter\s+name=\"(?P<key>[^\"]+)\"(?:\s+string=\"(?P<kind>\w+)\")?\s*>",
    value_end=f"</{DSML}parameter>",
)
KIMI_K3_TAGS = Tags(
    call='<|open|>call tool="{name}"<|sep|>',
    call_pattern=r"<\|open\|>call\b(?:(?!<\|sep\|>).)*?\btool=\"(?P<name>[^\"]+)\"(?:(?!<\|sep\|>).)*<\|sep\|>",
    call_end="<|close|>call<|sep|>",
    key='<|open|>argument key="{key}" type="string"<|sep|>',
    key_pattern=(
        r"<\|open\|>argument\b(?:(?!<\|sep\|>).)*?\bkey=\"(?P<key>[^\"]+)\""
        r"(?:(?!<\|sep\|>).)*?(?:\btype=\"(?P<kind>\w+)\")?\s*<\|sep\|>"
    ),
    value_end="<|close|>argument<|sep|>",
)


def _glm_tags(template: str, prefix: str = "") -> Tags:
    line = "\n" if f"</{prefix}arg_key>\\n<{prefix}arg_value>" in template.replace("\n", "\\n") else ""
    return Tags(
        call="{name}" + line,
        call_pattern=r"(?P<name>[^\s<{\[]+)",
        call_end="",
        key=f"<{prefix}arg_key>{{key}}</{prefix}arg_key>{line}<{prefix}arg_value>",
        key_pattern=rf"<{prefix}arg_key>(?P<key>[^<]+)</{prefix}arg_key>\s*<{prefix}arg_value>",
        value_end=f"</{prefix}arg_value>",
        between_values=line,
    )


def _mistral(template: str) -> ToolFormat:
    if "[ARGS]" not in template:
        return JsonCalls("mistral", "[TOOL_CALLS]", listed=True)
    pattern = r"(?P<name>[^\s\[<{]+)\s*(?:\[CALL_ID\]\s*\S*?\s*)?\[ARGS\]"
    return HeadedCalls("mistral-args", "[TOOL_CALLS]", header="{name}[ARGS]", header_pattern=pattern)


def _deepseek(template: str) -> ToolFormat:
    call, sep, end = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
    if "```json" not in template:
        return HeadedCalls("deepseek-v3.1", *DEEPSEEK, header=f"{call}{{name}}{sep}", closer=end)
    header, closer = f"{call}function{sep}{{name}}\n```json\n", f"\n```{end}"
    return HeadedCalls("deepseek-v3", *DEEPSEEK, header=header, closer=closer)


def _kimi_k2(_: str) -> ToolFormat:
    begin, argument = "<|tool_call_begin|>", "<|tool_call_argument_begin|>"
    pattern = r"<\|tool_call_begin\|>\s*(?:functions\.)?(?P<name>[^\s<]+?)(?::\d+)?\s*<\|tool_call_argument_begin\|>"
    return HeadedCalls(
        "kimi-k2",
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        header=f"{begin}functions.{{name}}:0{argument}",
        header_pattern=pattern,
        closer="<|tool_call_end|>",
    )


PHI4_MINI = ("<|tool_call|>", "<|/tool_call|>")
Maker = Callable[[str], ToolFormat]
LIBRARY_FAMILIES: Mapping[str, Maker] = {
    "json_tools": lambda _: JsonCalls("hermes", "<tool_call>", "</tool_call>"),
    "qwen3_coder": lambda _: TaggedCalls("qwen3-coder", "<tool_call>", "</tool_call>", tags=QWEN_TAGS),
    "glm47": lambda template: TaggedCalls("glm", "<tool_call>", "</tool_call>", tags=_glm_tags(template)),
    "laguna": lambda template: TaggedCalls("laguna", "<tool_call>", "</tool_call>", tags=_glm_tags(template)),
    "longcat": lambda template: TaggedCalls(
        "longcat", "<longcat_tool_call>", "</longcat_tool_call>", tags=_glm_tags(template, "longcat_")
    ),
    "minimax_m2": lambda _: TaggedCalls("minimax-m2", "<minimax:tool_call>", "</minimax:tool_call>", tags=MINIMAX_TAGS),
    "minicpm5": lambda _: TaggedCalls("minicpm5", "<function name=", "</function>", tags=MINICPM_TAGS, steered=False),
    "muse_spark": lambda _: TaggedCalls(
        "muse-spark", "<atem:function_calls>", "</atem:function_calls>", tags=MUSE_TAGS, steered=False
    ),
    "kimi_k2": _kimi_k2,
    "kimi_k3": lambda _: TaggedCalls(
        "kimi-k3", "<|open|>tools<|sep|>", "<|close|>tools<|sep|>", tags=KIMI_K3_TAGS, steered=False
    ),
    "mistral": _mistral,
    "pythonic": lambda _: PythonCalls("pythonic", "<|tool_call_start|>", "<|tool_call_end|>"),
    "gemma4": lambda _: DelimitedCalls("gemma4", "<|tool_call>", "<tool_call|>", quote='<|"|>'),
    "function_gemma": lambda _: DelimitedCalls(
        "function-gemma", "<start_function_call>", "<end_function_call>", quote="<escape>"
    ),
}
"""By the name of mlx-lm's parser, whose choice by template is followed."""

OTHER_FAMILIES: tuple[tuple[tuple[str, ...], Maker], ...] = (
    (
        (f"<{DSML}function_calls>",),
        lambda _: TaggedCalls(
            "deepseek-v3.2", f"<{DSML}function_calls>", f"</{DSML}function_calls>", tags=DSML_TAGS, steered=False
        ),
    ),
    ((DEEPSEEK[0],), _deepseek),
    (
        ("<seed:tool_call>",),
        lambda _: TaggedCalls("seed-oss", "<seed:tool_call>", "</seed:tool_call>", tags=SEED_TAGS),
    ),
    (("<TOOLCALL>",), lambda _: JsonCalls("nemotron", "<TOOLCALL>", "</TOOLCALL>", listed=True)),
    (
        ("<|START_ACTION|>",),
        lambda _: JsonCalls(
            "command", "<|START_ACTION|>", "<|END_ACTION|>", listed=True, keys=("tool_name", "parameters")
        ),
    ),
    (
        ("<|action_start|><|plugin|>",),
        lambda _: JsonCalls("internlm", "<|action_start|><|plugin|>", "<|action_end|>", keys=("name", "parameters")),
    ),
    (("<tool_calls>[",), lambda _: JsonCalls("hunyuan", "<tool_calls>", "</tool_calls>", listed=True)),
    (("<tool_calls>",), lambda _: JsonCalls("minimax-m1", "<tool_calls>", "</tool_calls>")),
    (
        PHI4_MINI,
        lambda _: JsonCalls("phi4-mini", *PHI4_MINI, listed=True, other_starts=("functools",)),
    ),
    (("<|tool_call|>",), lambda _: JsonCalls("granite", "<|tool_call|>", listed=True)),
    (("<function_calls>",), lambda _: PythonCalls("olmo3", "<function_calls>", "</function_calls>")),
    (("<|python_start|>",), lambda _: BareCalls("llama4", "<|python_start|>", "<|python_end|>")),
    (("<|header_start|>",), lambda _: BareCalls("llama4", "<|python_start|>", "<|python_end|>")),
    (("<|python_tag|>",), lambda _: BareCalls("llama3", "<|python_tag|>")),
    (('"parameters": ', "ipython"), lambda _: BareCalls("llama3", "<|python_tag|>")),
    (("<tool_call>",), lambda _: JsonCalls("hermes", "<tool_call>", "</tool_call>")),
)
"""Families that mlx-lm has no parser for: texts that their templates hold, the most special first."""


def tool_format(tokenizer: Any) -> ToolFormat:
    """Return the form of calls of mlx-lm's ``tokenizer``; that of Hermes, marked as not known, for an unknown one."""
    template = template_text(tokenizer)
    if all(marker in template for marker in ("<|channel|>", "<|message|>", "<|start|>")):
        return HarmonyCalls()
    kind = str(tokenizer.init_kwargs.get("tool_parser_type")) if tokenizer.has_tool_calling else ""
    if kind in LIBRARY_FAMILIES:
        made = LIBRARY_FAMILIES[kind](template)
        made.library = tokenizer.tool_parser
        return made
    if tokenizer.init_kwargs.get("chat_template_type") == "deepseek_v32":
        template += f"<{DSML}function_calls>"
    for texts, make in OTHER_FAMILIES:
        if all(text in template for text in texts):
            return make(template)
    vocabulary = tokenizer.get_vocab()
    if all(text in vocabulary for text in PHI4_MINI):
        # Its own template shows no tools: it may follow the prompt's example of a call, or its training.
        starts = ("functools", PHI4_MINI[0])
        return JsonCalls("phi4-mini", "<tool_call>", "</tool_call>", other_starts=starts, other_ends=PHI4_MINI[1:])
    return JsonCalls("unknown", "<tool_call>", "</tool_call>", known=False)


def template_text(tokenizer: Any) -> str:
    """Return the chat template, or all templates where a tokenizer has several; empty without one."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        return "\n".join(str(text) for text in template.values())
    return template if isinstance(template, str) else ""
