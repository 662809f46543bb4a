"""Named points where a test can kill, damage or delay a run. Without a plan they do nothing; no recipe can set one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
FaultPlan = Mapping[str, Callable[[Any], Any]]
"""Point → function that receives the value there and returns what to go on with."""

POINTS = frozenset(
    {
        "commit.begin",
        "commit.after_files",
        "commit.after_manifest",
        "commit.after_rename",
        "commit.after_sync",
        "commit.after_retention",
        "batch",
        "gather",
        "loss",
        "gradient",
        "post_step",
        "rollback",
        "restore",
        "restored",
    }
)

_PLAN: ContextVar[FaultPlan | None] = ContextVar("muse_fault_plan", default=None)


def fault_point(point: str, value: T) -> T:
    """Passes ``value`` through the point's function if a test installed one."""
    assert point in POINTS, point
    plan = _PLAN.get()
    if plan is None or point not in plan:
        return value
    return plan[point](value)  # type: ignore[no-any-return]


@contextlib.contextmanager
def installed(plan: FaultPlan) -> Iterator[None]:
    """Installs a plan for the code inside the ``with``. Raises ValueError for a point that does not exist."""
    if unknown := sorted(set(plan) - POINTS):
        raise ValueError(f"no such fault point: {', '.join(unknown)}; there are {', '.join(sorted(POINTS))}")
    token = _PLAN.set(plan)
    try:
        yield
    finally:
        _PLAN.reset(token)
