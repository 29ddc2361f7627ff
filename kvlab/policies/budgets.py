"""``with_budgets``: the same policies under several budgets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from kvlab.errors import PolicyError
from kvlab.policies.policy import Policy, default
from kvlab.policies.scorers.base import Scorer
from kvlab.policies.slots import Module

WHOLE_PROMPT = 1
"""The budget that keeps all rows: a share, although no point is written."""


def with_budgets(policies: Iterable[str | Policy | Module], budgets: Iterable[int | float]) -> list[Policy]:
    """Return each policy that evicts by scores once for each budget, the others once; equal ones are left out.

    A budget is a share of the prompt below 1, or tokens above it, as in ``snapkv:budget=0.25``; 1 is the policy without
    eviction. Raises PolicyError for a budget that is none, and where no policy takes one.
    """
    asked, shares = [Policy.parse(policy) for policy in policies], list(budgets)
    if shares and not any(isinstance(policy.retention, Scorer) for policy in asked):
        named = ", ".join(str(policy) for policy in asked)
        raise PolicyError(f"none of {named} takes a budget; write a method that evicts by scores, such as snapkv")
    found: dict[Policy, None] = {}
    for policy in asked:
        method = policy.retention
        if not shares or not isinstance(method, Scorer):
            found[policy] = None
            continue
        for budget in shares:
            kept = default("retention") if budget == WHOLE_PROMPT else dataclasses.replace(method, budget=budget)
            others = (module for slot, module in policy.named.items() if slot != "retention")
            found[Policy(kept, *others)] = None
    return list(found)
