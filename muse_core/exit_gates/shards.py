"""No gradient crosses from one shard of a memory into the one before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import attrs
import torch

from muse_core.component import walk
from muse_core.contracts import Tokens
from muse_core.exit_gates.bench import Bench
from muse_core.exit_gates.findings import Finding, judged, not_applicable
from muse_core.model.plan import Site, plan

OPTIONS = ("shard", "shard_size", "shard_length")
"""Names under which a layer has the tokens of a shard."""


class Found(NamedTuple):
    """Largest gradients, over the first two boundaries."""

    across: float
    """From behind a boundary to the inputs before it: must be zero."""
    within: float
    """To the inputs behind it: must not be."""
    starts: tuple[float, ...]
    """To each learned tensor that a shard starts from, from the shard that sends it least: must not be zero."""


def shard_boundaries(bench: Bench) -> Finding:
    """For each memory with shards: the gradient of what it adds behind a boundary, with respect to its inputs before
    and to the learned memory that every shard starts from."""
    options = bench.checked.recipe.model.options
    sites = [site for sites in plan(options).blocks for site in sites] if hasattr(options, "block") else []
    if not any(shard_of(site) is not None for site in sites):
        return not_applicable("no layer of the recipe has shards")
    model = bench.exact_model()
    found = {
        name: gradients(layer, site.signals, size, options.width)
        for site in sites for name, layer, size in sharded(model.get_submodule(site.full_name), site)
    }
    worst = max(found, key=lambda name: found[name].across)
    dead = [name for name, one in found.items() if one.within == 0.0]
    unlearned = [name for name, one in found.items() if 0.0 in one.starts]
    across = found[worst].across
    starts = [value for one in found.values() for value in one.starts]
    reason = (
        f"{dead[0]} has no gradient within its own shard either, so nothing is shown" if dead
        else f"a gradient of {across:.1e} crosses a boundary in {worst} - detach the state there" if across
        else f"no gradient reaches the persistent memory of {(unlearned or [worst])[0]} from behind a boundary - a "
        "shard must start from it with its gradient"
    )
    figure = (
        f"{len(found)} layers; largest gradient across a boundary {across:g}, within a shard "
        f"{max(one.within for one in found.values()):.1e}"
    )
    if starts:
        figure += f", smallest to persistent memory {min(starts):.1e}"
    return judged(
        across == 0.0 and not dead and not unlearned,
        figure,
        reason,
        layers=len(found), largest_across=across, largest_within=max(one.within for one in found.values()),
        **({"smallest_to_persistent": min(starts)} if starts else {}),
    )


def sharded(layer: torch.nn.Module, site: Site) -> Iterator[tuple[str, torch.nn.Module, int]]:
    """Name, module and shard of the memories with shards in a layer: the modules that say so, or else the layer itself
    where its options do."""
    named = [
        (f"{site.full_name}.{name}" if name else site.full_name, module, module.shard)
        for name, module in layer.named_modules() if isinstance(getattr(module, "shard", None), int)
        and hasattr(module, "shard_start")
    ]
    size = shard_of(site)
    yield from named or ([(site.full_name, layer, size)] if size is not None else [])


def shard_of(site: Site) -> int | None:
    """Tokens of a shard of this layer or of a component below it. Where options name the grid that is in force, a shard
    counts if it lies on it, and not where they say ``goes_on_over_shards``: of two memories one starts afresh alone."""
    for given in (site.use.options, *(use.options for use in walk(site.use.options))):
        if getattr(given, "goes_on_over_shards", False):
            continue
        for field in attrs.fields(type(given)):
            value = getattr(given, field.name)
            if field.name in OPTIONS and isinstance(value, int) and value > 0:
                if value in (given.grid() if hasattr(given, "grid") else (value,)):
                    return value
    return None


def gradients(layer: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]], size: int, width: int) -> Found:
    """The gradients of a layer that reads signals of these shapes."""
    length = 2 * size + max(1, size // 2)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(1, length, *shape, generator=generator, dtype=torch.float64)

    x = random(width).requires_grad_()
    signals = {name: random(*shape) for name, shape in shapes.items()}
    learned = layer.shard_start() if hasattr(layer, "shard_start") else []
    update = layer(x, None, signals, Tokens(torch.arange(length)[None])).update
    across = within = 0.0
    starts = [math.inf] * len(learned)
    for boundary in (size, 2 * size):
        gradient, *reached = torch.autograd.grad(
            update[:, boundary : boundary + size].square().sum(), [x, *learned], retain_graph=True, allow_unused=True
        )
        across = max(across, gradient[:, :boundary].abs().max().item())
        within = max(within, gradient[:, boundary:].abs().max().item())
        starts = [
            min(least, 0.0 if one is None else one.abs().max().item()) for least, one in zip(starts, reached)
        ]
    return Found(across, within, tuple(starts))
