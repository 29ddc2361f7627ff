"""Systems: the cache designs of six servers as values, a policy and the settings of a decoder with their sources."""

from kvlab.systems.base import System
from kvlab.systems.candidate import SYSTEMS, Candidate, config_of, parse_candidates, policy_of, settings_of
from kvlab.systems.registry import known_systems, parse_system, system_names
from kvlab.systems.table import SystemTable, all_systems

__all__ = [
    "SYSTEMS", "Candidate", "System", "SystemTable", "all_systems", "config_of", "known_systems", "parse_candidates",
    "parse_system", "policy_of", "settings_of", "system_names",
]  # fmt: skip
