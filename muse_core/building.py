"""Recipe → model: loads implementations, binds kernels, applies initializers. Every failure names its component."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from muse_core.component import Use, load
from muse_core.errors import MuseError, PluginError, RecipeError
from muse_core.model.context import Context
from muse_core.model.kernels import BoundKernels, ranked
from muse_core.model.plan import ExitSite, Site
from muse_core.model.roles import parameter_roles
from muse_core.model.seeding import generator_of, seeded
from muse_core.model.signatures import mismatch
from muse_core.model.states import said
from muse_core.plugins.raised import raised
from muse_core.recipe.schema import Matched, Recipe


def construct(use: Use, context: Any) -> Any:
    """Import and instantiate a component.

    Raises PluginError naming component, distribution and key path when the import fails, the signature departs from
    the contract or the constructor raises; MuseErrors of the constructor pass with the key path in front.
    """
    where = f"{use.path}: " if use.path else ""
    title = f"{where}{use.title}"
    try:
        implementation = load(use.implementation)
    except Exception as error:
        raise PluginError(f"{title} cannot be imported ({use.implementation}): {raised(error)}") from error
    sentence = mismatch(use.kind, implementation)
    if sentence:
        raise PluginError(f"{title} does not keep the contract: {sentence}")
    try:
        return implementation(use.options, context)
    except MuseError:
        raise
    except ValueError as error:
        raise RecipeError(f"{where}{use.name}: {error}") from error
    except Exception as error:
        raise PluginError(f"{title} failed to build: {raised(error, use.implementation)}") from error


def construct_component(use: Use, context: Context, seed: int) -> Any:
    """``construct`` with torch's default initialisation seeded by (seed, name of the component)."""
    with seeded(seed, f"{context.name}/{use.kind}/{use.name}"):
        return construct(use, context)


def construct_nested(use: Use, context: Context, seed: int) -> Any:
    """``construct_component`` with a generator of its own: what a nested component draws moves nothing of its host."""
    own = generator_of(seed, f"{context.name}/{use.kind}/{use.name}")
    return construct_component(use, attrs.evolve(context, generator=own), seed)


@attrs.frozen(kw_only=True)
class ModelContext:
    """Given to a model's constructor."""

    vocabulary_size: int
    sequence_length: int
    width: int
    depth: int
    seed: int
    kernels: BoundKernels
    memory: int | None = None
    """Bytes of the device that the model is for; None is unknown."""
    built: Callable[[str, nn.Module], None] = lambda name, block: None
    """Told of each block of a list of blocks under its full name once it is there, before the next is made: where many
    processes share a model it is divided then, so that none holds more than one block whole."""
    activation_checkpointing: bool = False
    recorded: bool = False
    """Steps are recorded (``train.cuda_graph``), which takes no random state back: what computes activations once more
    keeps none, and the run is refused where random numbers are drawn."""
    publish_all: bool = False
    """Layers return every signal that they provide, for diagnostics."""

    def check_size(self, parameter_bytes: int) -> None:
        """Refuse a model whose weights, gradients and two moments alone exceed the memory, before it is allocated.

        Raises RecipeError.
        """
        needed = 4 * parameter_bytes
        if self.memory is not None and needed > self.memory:
            raise RecipeError(
                f"model: weights, gradients and moments would take {needed / 2**30:,.1f} GiB, and there are "
                f"{self.memory / 2**30:,.1f} GiB; lower model.width or model.depth"
            )

    def seeded(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Seeds torch's default initialisation for the parameter or module of this name."""
        return seeded(self.seed, name)

    def layer(self, site: Site) -> nn.Module:
        """Build the layer of a site of the plan."""
        return self._build(site, publish=site.publish)

    def exit(self, site: ExitSite) -> nn.Module:
        """Build the router that decides after one block who leaves."""
        return self._build(site, experts=2)

    def _build(self, site: Site | ExitSite, **more: Any) -> nn.Module:
        """Build the component of a site; what it nests is built by ``construct_nested``."""
        context = Context(
            width=self.width,
            depth=self.depth,
            block=site.block,
            name=site.full_name,
            sequence_length=self.sequence_length,
            generator=generator_of(self.seed, site.full_name),
            kernels=self.kernels,
            construct=lambda use, context: construct_nested(use, context, self.seed),
            signals=site.signals,
            **more,
        )
        module: nn.Module = construct_component(site.use, context, self.seed)
        return module


def kernel_backends(recipe: Recipe, registry: Any) -> list[tuple[str, Any]]:
    """(name, backend) pairs in the order in which they are asked."""
    if recipe.kernels.backend != "auto":
        return [(use.name, construct(use, None)) for use in recipe.kernels.backend]
    uses = [registered_use(row) for row in registry.rows("kernel backend")]
    return ranked((use.name, construct(use, None)) for use in uses)


def every_backend(recipe: Recipe, registry: Any) -> list[tuple[str, Any]]:
    """(name, backend) pairs for a copy in another precision or on another device, which those that the recipe names may
    not serve: those first, then every other one by rank."""
    if recipe.kernels.backend == "auto":
        return kernel_backends(recipe, registry)
    named = kernel_backends(recipe, registry)
    others = [registered_use(row) for row in registry.rows("kernel backend")]
    return [*named, *ranked((use.name, construct(use, None)) for use in others if use.name not in dict(named))]


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory that the device has in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def registered_use(row: Any) -> Use:
    """A registered component with its default options."""
    return Use(
        kind=row.kind,
        name=row.component.name,
        distribution=row.distribution,
        version=row.version,
        implementation=row.component.implementation,
        options=row.component.options(),
    )


def build_model(
    recipe: Recipe,
    registry: Any,
    *,
    vocabulary_size: int,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    backends: Sequence[tuple[str, Any]] | None = None,
    publish_all: bool = False,
    kernels: BoundKernels | None = None,
    sequence: Any = None,
    divider: Any = None,
) -> tuple[nn.Module, BoundKernels]:
    """Build the recipe's model on ``device``; ``dtype`` names what kernels will receive (bfloat16 under autocast).
    ``kernels`` given are used in place of ones bound for that device and dtype. ``sequence``: the processes among
    which the tokens of a row are divided; ``divider``, a ``training.shards.Divider``, divides the weights among
    processes as the model is built.

    Initial values are computed on the CPU in fp32 and depend on (seed, name) only. Returns the model in training mode
    and the kernels with every choice made. Raises RecipeError or PluginError.
    """
    device = torch.device(device)
    if kernels is None:
        chosen = kernel_backends(recipe, registry) if backends is None else backends
        kernels = BoundKernels(chosen, device=device.type, dtype=dtype, chunk=recipe.kernels.chunk, sequence=sequence)
    options = recipe.model.options
    context = ModelContext(
        vocabulary_size=vocabulary_size,
        sequence_length=recipe.train.sequence_length,
        width=getattr(options, "width", 0),
        depth=getattr(options, "depth", 0),
        seed=recipe.seed,
        kernels=kernels,
        memory=None if (memory := memory_of(device)) is None else memory * (1 if divider is None else divider.shards),
        activation_checkpointing=recipe.train.activation_checkpointing,
        recorded=recipe.train.cuda_graph,
        publish_all=publish_all,
    )
    if divider is None:
        model = construct(recipe.model, context)
        initialize(model, recipe.initializers, seed=recipe.seed)
        return model.to(device), kernels
    done: set[str] = set()

    def built(name: str, block: nn.Module) -> None:
        initialize(block, recipe.initializers, seed=recipe.seed, under=name)
        done.update(parameter_roles(block, name))
        divider.block(name, block)

    model = construct(recipe.model, attrs.evolve(context, built=built))
    initialize(model, recipe.initializers, seed=recipe.seed, done=done)
    return divider.rest(model), kernels


@torch.no_grad()
def initialize(
    model: nn.Module, matched: Sequence[Matched], *, seed: int, make: Callable[[Use, Any], Any] = construct,
    under: str = "", done: Collection[str] = (),
) -> dict[str, str]:
    """Apply initializers by parameter name; of several matching, the last wins. Returns parameter → initializer.
    ``model`` may be the part of one that stands ``under`` this name there; ``done`` have their values already.

    Raises RecipeError for a pattern that matches nothing, and PluginError for a result that is no tensor of real and
    finite numbers of the parameter's shape.
    """
    roles = parameter_roles(model, under)
    winner: dict[str, int] = {}
    for index, entry in enumerate(matched):
        names = [name for name in roles if fnmatch.fnmatchcase(name, entry.match)]
        if not names and not under:
            raise RecipeError(
                f"initializers[{index}].match: {entry.match!r} matches no parameter; "
                f"they are named like {', '.join(list(roles)[:3])}"
            )
        winner.update(dict.fromkeys(names, index))
    applied: dict[str, str] = {}
    built = [make(entry.initializer, None) for entry in matched]
    for name, index in winner.items():
        if name in done:
            continue
        parameter = model.get_parameter(name.removeprefix(f"{under}."))
        try:
            value = built[index](parameter.detach().clone(), role=roles[name], generator=generator_of(seed, name))
        except (RecipeError, ValueError) as error:
            raise RecipeError(f"initializers[{index}] on {name}: {error}") from error
        if departed := _no_values(value, parameter.shape):
            title = matched[index].initializer.title
            raise PluginError(f"initializers[{index}]: {title} returned {departed} for {name}")
        parameter.copy_(value)
        applied[name] = matched[index].initializer.name
    return applied


def _no_values(value: Any, shape: torch.Size) -> str | None:
    """What an initializer returned and what is due, where it is no value of a parameter of this shape."""
    if not isinstance(value, Tensor):
        return f"{said(value)} where a new tensor is due"
    if value.shape != shape:
        return f"shape {tuple(value.shape)} where {tuple(shape)} is due"
    if not value.is_floating_point():
        return f"{value.dtype} where real numbers are due"
    return None if bool(torch.isfinite(value).all()) else "NaN or infinity"
