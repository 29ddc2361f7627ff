"""What a policy is: modules, slots, composition, the spec grammar and the registry."""

from kvlab.policies.codecs import Quantized, Raw
from kvlab.policies.knorm import KNorm
from kvlab.policies.policy import SLOTS, Module, ModuleInfo, Policy, parse_module, registry
from kvlab.policies.random import Random
from kvlab.policies.retention import Full, Rotating
from kvlab.policies.reuse import NoReuse, Paged
from kvlab.policies.scorer import ScoreContext, Scorer
from kvlab.policies.sizes import format_bytes, parse_bytes
from kvlab.policies.snapkv import SnapKV
from kvlab.policies.tiers import Ram, Snapshot, Tiered

__all__ = [
    "SLOTS", "Full", "KNorm", "Module", "ModuleInfo", "NoReuse", "Paged", "Policy", "Quantized", "Ram", "Random",
    "Raw", "Rotating", "ScoreContext", "Scorer", "SnapKV", "Snapshot", "Tiered", "format_bytes", "parse_bytes",
    "parse_module", "registry",
]  # fmt: skip
