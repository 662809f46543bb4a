"""Parameters that no gradient reaches in the first steps of a run: they train to the end and learn nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor, nn

from muse_core.component import Use, walk

STEPS = 5
"""Accepted steps after which they are told: a branch that begins at zero lets gradients through from the second on."""
NAMED = 8
"""Parameters that a sentence names; the event names all."""


@attrs.define
class Silent:
    """The trained parameters, by name, that had no gradient or one of exactly zero in every step so far."""

    left: frozenset[str] = frozenset()
    steps: int = 0
    """Accepted steps that were seen, from the first of a run on."""
    newest: tuple[tuple[str, ...], Tensor] | None = None
    """Names and norms of the present step's gradients, on the device."""
    seen: list[tuple[tuple[str, ...], Tensor]] = attrs.field(factory=list)
    """The same of each accepted step. They are read once, together."""

    @property
    def over(self) -> bool:
        """Whether nothing more is to be seen."""
        return not self.left

    def step(self, names: Sequence[str], sizes: Tensor) -> None:
        """The gradients of a step, before its verdict."""
        if not self.over:
            self.newest = tuple(names), sizes

    def accepted(self, number: int) -> tuple[str, ...]:
        """The step was made, the run's ``number``-th from 0 on; the names to tell, once. A run that goes on within its
        first steps is not judged: what was seen before is not kept."""
        if self.over or self.newest is None:
            return ()
        if number > self.steps:
            self.left = frozenset()
            return ()
        names, sizes = self.newest
        self.seen.append((names, sizes.clone()))  # a recording may write the next step's to the same place
        self.steps = max(self.steps, number + 1)
        if self.steps < STEPS:
            return ()
        reached = {name for told, norms in self.seen for name, size in zip(told, norms.tolist()) if size != 0}
        found = tuple(sorted(self.left - reached))
        self.left, self.newest = frozenset(), None
        self.seen.clear()
        return found


def watched(model: nn.Module, use: Use, trained: Mapping[str, nn.Parameter]) -> frozenset[str]:
    """The parameters that every step reaches where nothing is wrong. Where a router decides who computes, one that was
    not chosen for a while is none: of such layers none are watched, and of a model in which tokens leave early, or
    whose routers are not in layers of a stack, none at all. Nor are those of a layer that adds nothing to the stream,
    and the norm before one that does not read it."""
    if getattr(model, "exits", None) is not None:
        return frozenset()
    blocks: Any = getattr(model, "blocks", ())
    sites = [site for block in blocks for site in getattr(block, "sites", ())]
    if not sites and routes(use):
        return frozenset()
    apart = tuple(prefix for site in sites for prefix in _apart(site))
    return frozenset(name for name, one in trained.items() if one.numel() and not name.startswith(apart))


def _apart(site: Any) -> list[str]:
    """How names of parameters begin that belong to this layer and are not watched."""
    adds_nothing = getattr(site.use.options, "adds_nothing", False)
    ignores = adds_nothing or getattr(site.use.options, "ignores_stream", False)
    own, norm = f"{site.full_name}.", f"blocks.{site.block}.norms.{site.name}."
    return [own] * (adds_nothing or routes(site.use)) + [norm] * ignores


def routes(use: Use) -> bool:
    """Whether a component has a router within."""
    return use.kind == "router" or any(inner.kind == "router" for inner in walk(use.options))


def sentence(names: Sequence[str]) -> str:
    """The warning about these parameters."""
    listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return (
        f"no gradient reached {listed} in the first {STEPS} steps: the run goes on, and what nothing reaches learns "
        "nothing - see whether forward uses it, and whether a detach, a rounding or a factor of zero lies between it "
        "and the loss"
    )
