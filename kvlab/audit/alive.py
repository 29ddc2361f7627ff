"""Whether a server still answers, so that a probe that harmed it says so and the audit does not hang."""

from __future__ import annotations

from kvlab.audit.finding import Finding
from kvlab.audit.material import user
from kvlab.audit.probe import Lab

ALIVE_LIMIT_S = 60.0
"""For one token to a short question. Longer than a server needs to end what an impatient client has left behind."""

SURVIVES = "An agent that does this harms no other."
ENDS = "One agent's request ends the service for all agents until somebody starts the server anew."


def why_silent(lab: Lab, limit_s: float = ALIVE_LIMIT_S) -> str:
    """Ask a short question; return an empty string where the server answers, else what came instead."""
    reply = lab.client.chat([user("Hello.")], max_tokens=1, timeout_s=limit_s)
    if reply.is_complete:
        return ""
    return f"status {reply.status}: {reply.error}" if reply.status else reply.error


def alive_finding(probe: str, lab: Lab, limit_s: float = ALIVE_LIMIT_S) -> Finding:
    """Ask a short question after a probe; the finding is ``bad`` where no answer comes."""
    reason = why_silent(lab, limit_s)
    if not reason:
        return Finding(probe, "alive", 1, "", "good", "a short question was answered afterwards", SURVIVES)
    return Finding(probe, "alive", 0, "", "bad", f"a short question afterwards got no answer: {reason}", ENDS)
