"""No gradient crosses from one shard of a memory into the one before."""

from __future__ import annotations

import attrs
import torch

from muse_core.component import walk
from muse_core.contracts import Tokens
from muse_core.exit_gates.bench import Bench
from muse_core.exit_gates.findings import Finding, judged, not_applicable
from muse_core.model.plan import Site, plan

OPTIONS = ("shard", "shard_size", "shard_length")
"""Names under which a layer has the tokens of a shard."""


def shard_boundaries(bench: Bench) -> Finding:
    """For each layer with shards: the gradient of what it adds behind a boundary, with respect to its inputs before."""
    options = bench.checked.recipe.model.options
    sites = [site for sites in plan(options).blocks for site in sites] if hasattr(options, "block") else []
    sharded = {site.full_name: (site, size) for site in sites if (size := shard_of(site)) is not None}
    if not sharded:
        return not_applicable("no layer of the recipe has shards")
    model = bench.exact_model()
    crossing, inside = {}, {}
    for name, (site, size) in sharded.items():
        crossing[name], inside[name] = gradients(model.get_submodule(name), site, size, options.width)
    worst = max(crossing, key=lambda name: crossing[name])
    dead = [name for name, value in inside.items() if value == 0.0]
    reason = (
        f"{dead[0]} has no gradient within its own shard either, so nothing is shown" if dead
        else f"a gradient of {crossing[worst]:.1e} crosses a boundary in {worst} - detach the state there"
    )
    return judged(
        crossing[worst] == 0.0 and not dead,
        f"{len(sharded)} layers; largest gradient across a boundary {crossing[worst]:g}, within a shard "
        f"{max(inside.values()):.1e}",
        reason,
        layers=len(sharded), largest_across=crossing[worst], largest_within=max(inside.values()),
    )


def shard_of(site: Site) -> int | None:
    """Tokens of a shard of this layer or of a component below it."""
    for given in (site.use.options, *(use.options for use in walk(site.use.options))):
        for field in attrs.fields(type(given)):
            value = getattr(given, field.name)
            if field.name in OPTIONS and isinstance(value, int) and value > 0:
                return value
    return None


def gradients(layer: torch.nn.Module, site: Site, size: int, width: int) -> tuple[float, float]:
    """Largest gradient across a boundary and behind it, over the first two boundaries."""
    length = 2 * size + max(1, size // 2)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(1, length, *shape, generator=generator, dtype=torch.float64)

    x = random(width).requires_grad_()
    signals = {name: random(*shape) for name, shape in site.signals.items()}
    update = layer(x, None, signals, Tokens(torch.arange(length)[None])).update
    across = within = 0.0
    for boundary in (size, 2 * size):
        (gradient,) = torch.autograd.grad(update[:, boundary:].square().sum(), x, retain_graph=True)
        across = max(across, gradient[:, :boundary].abs().max().item())
        within = max(within, gradient[:, boundary:].abs().max().item())
    return across, within
