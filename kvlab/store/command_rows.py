"""Make the tidy rows of ``kvlab store``."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def row(metric: str, value: float, unit: str, more: Row | None = None) -> Row:
    """Return one row; ``more`` adds fields."""
    return {"policy": "", "workload": "store", "metric": metric, "value": value, "unit": unit} | (more or {})


def tenant_filter(tenant: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the SQL condition on blocks of a tenant, with its values; None is every tenant."""
    if tenant is None:
        return "1", ()
    return "root IN (SELECT root FROM namespaces WHERE tenant = ?)", (tenant,)
