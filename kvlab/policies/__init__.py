"""Policies: modules, slots, composition, the spec grammar and the registry."""

from kvlab.policies.budgets import with_budgets
from kvlab.policies.codecs import Quantized, Raw
from kvlab.policies.grammar import parse_module
from kvlab.policies.kivi import Kivi
from kvlab.policies.kvtc import Kvtc
from kvlab.policies.labels import policy_labels
from kvlab.policies.policy import Policy
from kvlab.policies.retention import Full, Rotating
from kvlab.policies.reuse import NoReuse, Paged
from kvlab.policies.rotated import Rotated
from kvlab.policies.scorers.adakv import AdaKV
from kvlab.policies.scorers.base import ScoreContext, Scorer
from kvlab.policies.scorers.compactor import Compactor
from kvlab.policies.scorers.criticalkv import CriticalKV
from kvlab.policies.scorers.cur import CUR
from kvlab.policies.scorers.dms import DMS
from kvlab.policies.scorers.expected import Expected
from kvlab.policies.scorers.h2o import H2O
from kvlab.policies.scorers.keydiff import KeyDiff
from kvlab.policies.scorers.knorm import KNorm
from kvlab.policies.scorers.kvzip import KVzip
from kvlab.policies.scorers.lagkv import LagKV
from kvlab.policies.scorers.local import Local
from kvlab.policies.scorers.oracle import Oracle
from kvlab.policies.scorers.pyramidkv import PyramidKV
from kvlab.policies.scorers.random import Random
from kvlab.policies.scorers.sepllm import SepLLM
from kvlab.policies.scorers.snapkv import SnapKV
from kvlab.policies.scorers.tova import TOVA
from kvlab.policies.scorers.triattention import TriAttention
from kvlab.policies.sizes import format_bytes, parse_bytes
from kvlab.policies.slots import SLOTS, Module, ModuleInfo, registry
from kvlab.policies.tiers import Ram, Snapshot, Tiered
from kvlab.policies.turboquant import TurboQuant
from kvlab.policies.whole_sequences import Slots, WholePrompts

__all__ = [
    "CUR", "DMS", "H2O", "SLOTS", "TOVA", "AdaKV", "Compactor", "CriticalKV", "Expected", "Full", "KNorm", "KVzip",
    "KeyDiff", "Kivi", "Kvtc", "LagKV", "Local", "Module", "ModuleInfo", "NoReuse", "Oracle", "Paged", "Policy",
    "PyramidKV", "Quantized", "Ram", "Random", "Raw", "Rotated", "Rotating", "ScoreContext", "Scorer", "SepLLM",
    "Slots", "SnapKV", "Snapshot", "Tiered", "TriAttention", "TurboQuant", "WholePrompts", "format_bytes",
    "parse_bytes", "parse_module", "policy_labels", "registry", "with_budgets",
]  # fmt: skip
