"""Runs an audit: checks the server, fits its curve of cold prompts, then one probe after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tqdm.auto import tqdm

from kvlab.audit.client import WEB_PAGE, AuditClient, Message, Reply
from kvlab.audit.curve import ColdCurve
from kvlab.audit.errors import AuditError
from kvlab.audit.finding import Finding
from kvlab.audit.material import Material, system, user
from kvlab.audit.probe import DEFAULT_TOKENS, Lab, Probe
from kvlab.audit.revival import is_over, survival_findings

CURVE_SIZES = (0.125, 0.5, 1.0, 1.75)
"""Lengths of cold prompts, as shares of the audit's prompt size: from a new turn to the longest prompt of a probe."""

CURVE_REPEATS = 3
"""Of each length: one slow answer among three does not move the median."""

IN_WORDS = "The server does not count tokens: all sizes in this card are in words."
INFERRED = "The server does not report cached tokens: those in this card are inferred from the time to first token."

UNEVEN = "TTFT is uneven here: what is inferred from it is rough, so run the audit again when the machine is idle."
MAX_EVEN_SPREAD = 0.15

UNKNOWN_FIELD = (400, 422)
"""How servers refuse a field that they do not know."""

CALIBRATION_WORDS = 100
WARM_UP_TOKENS = 64


def prepare(
    client: AuditClient, *, salt: str, tokens: int = DEFAULT_TOKENS, restart: str | None = None, kill: str | None = None
) -> Lab:
    """Check that the server answers, and measure its tokenizer. Raises AuditError for a server that does not.

    Sets the client's model where the user named none and the server has one only.
    """
    listed = client.models()
    if client.model is None and len(listed) > 1:
        raise AuditError(f"the server has several models; choose one with --model: {', '.join(listed)}")
    if client.model is None and listed:
        client.model = listed[0]
    lab = Lab(client, Material(salt, 1.0), tokens=tokens, restart=restart, kill=kill, clock=client.clock)
    short = client.chat([user("Hello.")], max_tokens=1)
    if short.status in UNKNOWN_FIELD and "stream_options" in short.error:
        client.asks_usage = False
        short = client.chat([user("Hello.")], max_tokens=1)
    if not short.is_complete:
        raise AuditError(_not_answered(client, short, listed))
    long = lab.ask([user(lab.material.text("calibration", CALIBRATION_WORDS) + " Hello.")])
    lab.counts_tokens = bool(short.prompt_tokens and long.prompt_tokens)
    if short.prompt_tokens and long.prompt_tokens:
        lab.material.tokens_per_word = max(0.1, (long.prompt_tokens - short.prompt_tokens) / CALIBRATION_WORDS)
    return lab


def _not_answered(client: AuditClient, reply: Reply, listed: Sequence[str]) -> str:
    """Say in one sentence what to do about a server that gave no answer."""
    where = client.url.removesuffix("/v1")
    if reply.status == 0:
        return f"no server answers at {where} ({reply.error}): start it, or write the address that it prints"
    if reply.status in (401, 403):
        return f"{where} wants a key, or another one ({reply.error}): give it with --api-key"
    if listed and client.model not in listed:
        return f"{where} has no model '{client.model}'; choose one with --model: {', '.join(listed)}"
    if reply.status == 404 or reply.error == WEB_PAGE:
        return f"{client.url}/chat/completions is not there: write the address of an OpenAI-compatible server"
    said = f"{where} gave no answer, but status {reply.status}: {reply.error}"
    return said if listed or client.model else f"{said}; it lists no models: name one with --model"


def fit_curve(lab: Lab) -> Iterator[Finding]:
    """Measure cold prompts, fit the lab's curve, and see whether the server reports cached tokens."""
    lab.ask([user(lab.material.text("warm-up", WARM_UP_TOKENS))])
    samples, last = [], None
    for repeat in range(CURVE_REPEATS):
        for share in CURVE_SIZES:
            text = lab.material.text(f"curve/{share}/{repeat}", round(share * lab.tokens))
            messages = [system(text), user("Go on.")]
            reply = lab.ask(messages)
            samples.append((share, lab.size(messages, reply), reply.ttft_s))
            last = messages
    lab.curve = ColdCurve.fit(_by_length(samples))
    yield from _curve_findings(lab)
    yield from _what_is_reported(lab, last or [])


def _by_length(samples: Sequence[tuple[float, int, float]]) -> list[tuple[int, float]]:
    """Return (prompt tokens, seconds); prompts of one share differ by a few tokens, and get their mean."""
    pairs = []
    for share in dict.fromkeys(share for share, _, _ in samples):
        sizes = [size for own, size, _ in samples if own == share]
        pairs += [(round(sum(sizes) / len(sizes)), seconds) for own, _, seconds in samples if own == share]
    return pairs


def _curve_findings(lab: Lab) -> Iterator[Finding]:
    curve = lab.curve
    if curve is None:
        return
    detail = (
        f"{1e3 * curve.base:.1f} ms + {1e3 * curve.linear:.4f} ms a {lab.unit[:-1]} + {1e6 * curve.quadratic:.5f} µs a "
        f"{lab.unit[:-1]} squared; measured values lie {curve.spread:.1%} from it"
    )
    yield Finding("curve", "cold_ttft_ms", 1e3 * curve.ttft(lab.tokens), "ms", "note", detail)
    uneven = UNEVEN if curve.spread > MAX_EVEN_SPREAD else ""
    yield Finding("curve", "cold_ttft_spread", curve.spread, "ratio", "note", "one standard deviation", uneven)


def _what_is_reported(lab: Lab, known: Sequence[Message]) -> Iterator[Finding]:
    """Send a known prompt, see whether its cached tokens are reported, and say what numbers stand for."""
    again = lab.ask(known)
    size = lab.size(known, again)
    saved = lab.curve.cached(size, again.ttft_s).tokens if lab.curve else 0.0
    is_silent = again.cached_tokens is None
    is_false = again.cached_tokens == 0 and saved >= 0.5 * size
    lab.reports_cached = lab.counts_tokens and not is_silent and not is_false
    if not lab.counts_tokens:
        yield Finding("curve", "counts_tokens", 0, "bool", "note", "the server reports no prompt_tokens", IN_WORDS)
    if not lab.reports_cached:
        reason = f"a repeated prompt of {size} {lab.unit} was quicker by {saved:.0f}"
        told = "0 are reported, but " if is_false else "none are reported; "
        yield Finding("curve", "reports_cached_tokens", 0, "bool", "note", told + reason, INFERRED)


def run_audit(
    lab: Lab,
    probes: Sequence[Probe],
    *,
    progress: bool = True,
    limit_s: float | None = None,
    after: Callable[[Finding], None] = lambda _: None,
) -> list[Finding]:
    """Run probes in order. A probe that fails gives a finding ``unknown`` with the reason, and the next one runs.

    How long each took is in ``lab.seconds`` then. After ``limit_s`` no other one begins: those left are ``unknown``.
    """
    findings: list[Finding] = []
    until = None if limit_s is None else lab.clock() + limit_s

    def take(found: Iterator[Finding], name: str) -> None:
        began = lab.clock()
        try:
            for finding in found:
                findings.append(finding)
                after(finding)
        except Exception as error:  # noqa: BLE001 - one probe's failure must not cost the others
            reason = str(error) if isinstance(error, AuditError) else f"{type(error).__name__}: {error}"
            findings.append(Finding(name, "ran", None, "", "unknown", f"the probe stopped: {reason}"))
            after(findings[-1])
        lab.seconds[name] = lab.seconds.get(name, 0.0) + lab.clock() - began

    with tqdm(total=len(probes) + 1, desc="curve", unit="probe", disable=not progress) as bar:
        take(fit_curve(lab), "curve")
        bar.update()
        for place, probe in enumerate(probes, start=1):
            bar.set_description(probe.name)
            if until is not None and lab.clock() > until:
                late = Finding(probe.name, "ran", None, "", "unknown", f"not run: {limit_s:g} s were over")
                take(iter([late]), probe.name)
                bar.update()
                continue
            take(_run_if_possible(probe, lab), probe.name)
            bar.update()
            own = [finding for finding in findings if finding.probe == probe.name]
            take(survival_findings(probe, probes[place:], own, lab), probe.name)
            if is_over(findings):
                break
    return findings


def _run_if_possible(probe: Probe, lab: Lab) -> Iterator[Finding]:
    given = {name for name in ("restart", "kill") if getattr(lab, name)}
    if missing := sorted(probe.needs - given):
        options = ", ".join(f"--{name}" for name in missing)
        yield Finding(probe.name, "ran", None, "", "unknown", f"not run: it needs {options}")
        return
    yield from probe.run(lab)
