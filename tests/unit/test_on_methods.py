"""The summary behind the figure of all methods: names, and budgets also of methods that have a threshold."""

from __future__ import annotations

from kvlab.figures.on_methods import by_method
from kvlab.results import Results, row


def test_a_threshold_stands_at_the_budget_of_its_rows_and_full_is_left_out() -> None:
    policies = {"full": None, "adakv:budget=0.25": 0.25, "dms(keydiff):threshold=-0.7,recent=32": 0.25}
    made = [
        row(policy, "kl:docs", metric, value, budget=budget, conversation=name, kind="text", turn=1)
        for policy, budget in policies.items()
        for name, value in (("a", 0.1), ("b", 0.3))
        for metric in ("kl", "top1")
    ]
    summary = by_method(Results(made, {}).frame(), ["KL"])
    assert summary["method"].to_list() == ["adakv(snapkv)", "dms(keydiff)"]
    assert summary["budget"].to_list() == [0.25, 0.25]
    assert all(low <= 0.2 <= high for low, high in summary.select("low", "high").iter_rows())
