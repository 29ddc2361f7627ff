"""``kvlab ask``: one answer under a policy, and what became of every token's KV."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from kvlab.cli.main import dtype_option
from kvlab.cli.user_files import import_all, import_option
from kvlab.counts import counted
from kvlab.errors import ModelError, RunError

if TYPE_CHECKING:
    from kvlab.inspection import RequestTrace
    from kvlab.models import LoadedModel

DEFAULT_POLICY = "full"
STDIN_PATIENCE_S = 2.0
"""Seconds of silence on a piped standard input after which the command says what it waits for."""


@click.command()
@click.argument("text", required=False)
@click.option("--policy", metavar="POLICY", help="Such as snapkv:budget=0.5; else full.")
@click.option("--system", metavar="NAME", help="The cache design of a server in place of a policy: kvlab systems.")
@import_option
@click.option("--model", metavar="MODEL", help="What `kvlab compare` takes; else the bundled model.")
@click.option("--adapter", metavar="DIR", help="Folder of an adapter for the model, as mlx_lm.lora writes it.")
@dtype_option
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Most tokens of the answer.")
@click.option("--system-prompt", metavar="TEXT", help="What the model is told first.")
@click.option("--file", "files", multiple=True, metavar="FILE", help="Context put before the text; may be repeated.")
@click.option("--all-tokens", is_flag=True, help="Show every token of a long prompt, not only its two ends.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, and nothing else.")
def ask(
    text: str | None,
    policy: str | None,
    system: str | None,
    imports: tuple[Path, ...],
    model: str | None,
    adapter: str | None,
    dtype: str | None,
    max_tokens: int,
    system_prompt: str | None,
    files: tuple[str, ...],
    all_tokens: bool,
    as_json: bool,
) -> None:
    """Ask TEXT under a policy or a system; then show every token by what became of its KV: kept, evicted, restored.

    Context comes from files and from standard input: `cat notes.txt | kvlab ask "Who called?"`. Without TEXT, standard
    input is the question.
    """
    if policy is not None and system is not None:
        raise RunError("--policy and --system exclude each other: a system brings its policy; leave one of them out")
    contexts = [_read(Path(name)) for name in files]
    piped = _piped(sys.stdin)
    if text is None and piped:
        text, piped = piped, ""
    if not (text or "").strip():
        raise RunError('nothing to ask: write kvlab ask "a question"')
    contexts += [piped] if piped.strip() else []
    question = "\n\n".join([*(context.strip() for context in contexts), text or ""])
    from kvlab import models
    from kvlab.inspection import watch
    from kvlab.policies import Policy
    from kvlab.systems import parse_system

    import_all(imports)
    asked = Policy.parse(policy or DEFAULT_POLICY) if system is None else parse_system(system)
    loaded = models.load(model, adapter=adapter, dtype=dtype)
    prompt = _prompt(loaded, question, system_prompt)
    room = _room(loaded, prompt, max_tokens)
    out = sys.stderr if as_json else sys.stdout
    writer = _Writer(loaded, out)
    [trace] = watch(asked, [prompt], loaded, max_tokens=room, on_token=writer.write)
    writer.finish()
    click.echo("\n", file=out)
    if as_json:
        click.echo(json.dumps(document(trace, loaded, text or ""), indent=1, allow_nan=False, default=str))
        return
    click.echo(report(trace, color=_shows_color(out), whole=all_tokens))


def report(trace: RequestTrace, *, color: bool, whole: bool = False) -> str:
    """Return what is shown below the answer: the tokens of prompt and answer, a legend, and the key numbers."""
    from kvlab.inspection.terminal import FIRST_SHOWN, LAST_SHOWN, legend, tokens_text

    states, at = trace.states(), trace.prompt_tokens
    prompt = tokens_text(trace.texts[:at], states[:at], color=color, whole=whole)
    answer = tokens_text(trace.texts[at:], states[at:], color=color, whole=True)
    hint = " (--all-tokens shows all)" if not whole and at > FIRST_SHOWN + LAST_SHOWN else ""
    parts = [
        f"Prompt, {counted(at, 'token')}{hint}\n{prompt}",
        f"Answer, {counted(len(states) - at, 'token')}\n{answer}",
        legend(states, color=color),
        _numbers(trace),
    ]
    return "\n\n".join(parts)


def document(trace: RequestTrace, loaded: LoadedModel, question: str) -> dict[str, Any]:
    """Return the JSON document: tidy rows, the answer among them, and ``tokens`` with the state of each."""
    from kvlab.inspection.terminal import state_of
    from kvlab.provenance import document, provenance

    done = trace.completion
    values = {
        "ttft_ms": (done.ttft_ms, "ms"),
        "prompt_tokens": (done.prompt_tokens, "tokens"),
        "cached_tokens": (done.cached_tokens, "tokens"),
        "kept_tokens": (trace.kept_tokens, "tokens"),
        "kv_bytes_live": (done.kv_bytes_live, "bytes"),
    }
    if done.tpot_ms:
        values |= {"tpot_ms": (done.tpot_ms, "ms"), "tokens_per_s": (1e3 / done.tpot_ms, "tokens/s")}
    same = {"policy": str(trace.policy), "workload": "ask", "model": loaded.name}
    rows = [{**same, "metric": name, "value": value, "unit": unit} for name, (value, unit) in values.items()]
    said = {"metric": "text", "value": len(done.tokens), "unit": "tokens", "text": trace.answer, "question": question}
    tokens = [
        {"text": text, "state": state_of(state), "generated": state.generated, "evicted_share": state.gone}
        for text, state in zip(trace.texts, trace.states(), strict=True)
    ]
    facts = provenance(loaded, finish_reason=done.finish_reason)
    return document("ask", [*rows, {**same, **said}], facts) | {"tokens": tokens}


def _numbers(trace: RequestTrace) -> str:
    from kvlab.results.summary import bytes_text

    done = trace.completion
    tiers = "".join(f", {count:,} from {tier}" for tier, count in done.cached_by_tier.items() if count)
    parts = [
        f"TTFT {done.ttft_ms:,.0f} ms",
        f"{1e3 / done.tpot_ms:,.1f} tokens/s" if done.tpot_ms else "",
        f"live KV {bytes_text(done.kv_bytes_live)}",
        f"kept {trace.kept_tokens:,.0f} of {counted(len(trace.texts), 'token')} (mean over layers and heads)",
        f"cached {done.cached_tokens:,} of {counted(done.prompt_tokens, 'prompt token')}{tiers}",
        f"the context left out {counted(done.cut_tokens, 'token')} of the prompt's middle" if done.cut_tokens else "",
        f"{counted(done.discarded_tokens, 'token')} dropped at the context's end" if done.discarded_tokens else "",
        f"the answer was cut at {counted(len(done.tokens), 'token')}" if done.finish_reason == "length" else "",
    ]
    return f"{trace.policy}: " + " · ".join(filter(None, parts))


class _Writer:
    """Writes the text of tokens as they come, whole characters only."""

    def __init__(self, loaded: LoadedModel, out: TextIO) -> None:
        self._detokenizer, self._out = loaded.tokenizer.detokenizer, out
        self._detokenizer.reset()

    def write(self, token: int) -> None:
        self._detokenizer.add_token(token)
        self._show()

    def finish(self) -> None:
        self._detokenizer.finalize()
        self._show()

    def _show(self) -> None:
        from kvlab.inspection.terminal import printable

        self._out.write(printable(self._detokenizer.last_segment))
        self._out.flush()


def _prompt(loaded: LoadedModel, question: str, system: str | None) -> list[int]:
    """Return the token ids of the conversation; of the bare text where the model has no chat template."""
    if not loaded.tokenizer.has_chat_template:
        click.echo(f"kvlab: {loaded.name} has no chat template: it continues the text", err=True)
        return loaded.encode("\n\n".join(filter(None, [system, question])))
    user = {"role": "user", "content": question}
    if not system:
        return loaded.render([user])
    with contextlib.suppress(ModelError):  # a template without system messages
        return loaded.render([{"role": "system", "content": system}, user])
    return loaded.render([{"role": "user", "content": f"{system}\n\n{question}"}])


def _room(loaded: LoadedModel, prompt: list[int], max_tokens: int) -> int:
    """Return how many tokens the answer may have within the model's context. Raises RunError where none fits."""
    context = loaded.context_length or len(prompt) + max_tokens
    if len(prompt) >= context:
        given = counted(len(prompt), "token")
        raise RunError(f"the prompt has {given}, and {loaded.name} reads {context:,}; give less context")
    return min(max_tokens, context - len(prompt))


def _read(path: Path) -> str:
    """Return the text of a context file. Raises RunError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is no text in UTF-8; give a text file") from error
    except OSError as error:
        raise RunError(f"cannot read {path} ({error.strerror}); give --file a text file") from error


def _piped(stdin: TextIO | None) -> str:
    """Return what is piped into the command: "" from a terminal, and where there is no input. Raises RunError."""
    try:
        if stdin is None or stdin.isatty():
            return ""
        source = getattr(stdin, "buffer", stdin)  # bytes, whatever encoding the terminal has
        with contextlib.suppress(io.UnsupportedOperation):  # it is no file of the system's
            if not select.select([source], [], [], STDIN_PATIENCE_S)[0]:
                click.echo("kvlab: reads context from standard input until it ends; none? add </dev/null", err=True)
        read = source.read()
        return read.decode("utf-8-sig") if isinstance(read, bytes) else read
    except UnicodeDecodeError as error:
        raise RunError("standard input is no text in UTF-8; pipe text into kvlab ask") from error
    except (OSError, ValueError):  # closed
        return ""


def _shows_color(out: TextIO) -> bool:
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
