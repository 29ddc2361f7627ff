"""An audit: what the KV cache of any OpenAI-compatible server does, seen from outside.

It knows no other part of kvlab that computes: it is a client.
"""

from kvlab.audit.client import AuditClient, Reply
from kvlab.audit.curve import CachedEstimate, ColdCurve
from kvlab.audit.errors import AuditError
from kvlab.audit.finding import Finding, Verdict
from kvlab.audit.material import Material
from kvlab.audit.probe import Lab, Observation, Probe, all_probes, choose_probes
from kvlab.audit.runner import prepare, run_audit

__all__ = [
    "AuditClient",
    "AuditError",
    "CachedEstimate",
    "ColdCurve",
    "Finding",
    "Lab",
    "Material",
    "Observation",
    "Probe",
    "Reply",
    "Verdict",
    "all_probes",
    "choose_probes",
    "prepare",
    "run_audit",
]
