"""Builds one component in a small context, for tests."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from muse_core.building import ModelContext, construct, construct_component, construct_nested, registered_use
from muse_core.component import Kind, Use, provided
from muse_core.data.sources import SourceContext
from muse_core.data.tokenizers import ByteTokenizer
from muse_core.errors import RecipeError
from muse_core.kinds import BY_NAME
from muse_core.metrics.sinks import SinkContext
from muse_core.model.context import Context
from muse_core.model.kernels import BoundKernels, ranked
from muse_core.model.seeding import generator_of
from muse_core.plugins import Registry
from muse_core.recipe.nodes import Diagnostics, InvalidValue, Node
from muse_core.recipe.structure import make_converter
from muse_core.testing.cases import installed
from muse_core.training.monitor_context import MonitorContext
from muse_core.training.rule_context import OptimizerContext, ScheduleContext

OF_CONTEXT = {
    "potential": {"heads": 4},
    "router": {"experts": 4},
    "filter": {"period": 8, "key_width": 8},
}
"""Kind → the fields of its context that its host sets, with what they are here; for other kinds these words are
options."""


_converter = functools.cache(make_converter)


def resolve(kind: str, name: str, options: Mapping[str, Any] | None = None, registry: Registry | None = None) -> Use:
    """A component chosen as a recipe would, with checked options.

    Raises RecipeError with every problem.
    """
    registry = registry or installed()
    diagnostics = Diagnostics(registry)
    value = {**(options or {}), "use": name}
    try:
        wanted: Any = Annotated[Use, Kind(kind)]
        use: Use = _converter().structure(Node(value, (), diagnostics), wanted)
        return use
    except InvalidValue:
        lines = [".".join(map(str, path)) + ": " + what if path else what for path, what in diagnostics.problems]
        raise RecipeError(lines) from None


def chosen(kind: str, name: str, /, **options: Any) -> Use:
    """``resolve`` with the options as keywords, among what is installed."""
    return resolve(kind, name, options)


def build_component(
    kind: str,
    name: str,
    table: Mapping[str, Any] | None = None,
    /,
    *,
    width: int = 16,
    depth: int = 2,
    block: int = 0,
    sequence_length: int = 64,
    signals: Mapping[str, tuple[int, ...]] | None = None,
    publish: Iterable[str] | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    registry: Registry | None = None,
    **options: Any,
) -> Any:
    """Check the options as a recipe would and build the component on ``device``.

    ``table`` and ``options`` together are the recipe table. ``heads`` of a potential, ``experts`` of a router and
    ``period`` and ``key_width`` of a filter are what their host would say (4, 4, 8 and 8). ``publish`` defaults to
    every signal that the options provide. ``dtype`` is what kernels are bound for: ask for ``"float64"`` and call
    ``.double()`` on the result to test exact equalities. Raises RecipeError and PluginError like a run.
    """
    table = {**(table or {}), **options}
    host = {field: table.pop(field, value) for field, value in OF_CONTEXT.get(kind, {}).items()}
    use = resolve(kind, name, table, registry)
    if not BY_NAME[kind].context:
        return construct(use, None)
    kernels = bound_kernels(dtype, registry, device)
    if kind == "model":
        return construct(use, ModelContext(
            vocabulary_size=ByteTokenizer().vocabulary_size,
            sequence_length=sequence_length,
            width=getattr(use.options, "width", width),
            depth=getattr(use.options, "depth", depth),
            seed=seed,
            kernels=kernels,
        ))
    around = around_the_model(use, kernels, seed)
    if around is not None:
        return construct(use, around)
    context = small_context(
        f"blocks.{block}.{use.name}",
        width=width,
        depth=depth,
        block=block,
        sequence_length=sequence_length,
        seed=seed,
        kernels=kernels,
        signals=signals or {},
        publish=frozenset(provided(use.options, width) if publish is None else publish),
        **host,
    )
    built = construct_component(use, context, seed)
    return built if device == "cpu" else built.to(device)


def around_the_model(use: Use, kernels: BoundKernels, seed: int) -> Any:
    """The context of a component that stands beside the model, such as an optimizer; None for a part of the model."""
    if use.kind == "source":
        return SourceContext(cache=Path(tempfile.gettempdir()) / "muse-test-cache")
    if use.kind == "optimizer":
        return OptimizerContext(learning_rate=0.01, weight_decay=0.1)
    if use.kind == "schedule":
        return ScheduleContext(steps=200, warmup_steps=20, final_rate=0.1)
    if use.kind == "sink":
        run = Path(tempfile.mkdtemp(prefix="muse-test-run-"))
        return SinkContext(run=run, name="test", seed=seed, recipe={"name": "test"}, attempt=1)
    if use.kind == "safety monitor":
        return monitor_context(use.name, kernels, seed=seed)
    return None


def small_context(name: str, *, seed: int = 0, kernels: BoundKernels | None = None, **fields: Any) -> Context:
    """A context as the stack would give it; every other field of ``Context`` may be set."""
    defaults = {"width": 16, "depth": 2, "block": 0, "sequence_length": 64}
    return Context(
        name=name,
        generator=generator_of(seed, name),
        kernels=kernels or bound_kernels("float32"),
        construct=lambda use, context: construct_nested(use, context, seed),
        **(defaults | fields),
    )


def bound_kernels(dtype: str, registry: Registry | None = None, device: str = "cpu") -> BoundKernels:
    """Every installed kernel backend, for a device."""
    rows = (registry or installed()).rows("kernel backend")
    backends = ranked((row.name, construct(registered_use(row), None)) for row in rows)
    return BoundKernels(backends, device=device.partition(":")[0], dtype=dtype)


def monitor_context(name: str, kernels: BoundKernels, *, seed: int) -> MonitorContext:
    """What a monitor of a small run learns: a tokenizer of bytes and a page of held-out text."""
    page = "The state of the union is described once a year, in many words and with some figures.\n" * 40
    return MonitorContext(
        name=name,
        seed=seed,
        sequence_length=64,
        batch_size=4,
        tokenizer=ByteTokenizer(),
        validation=lambda: ByteTokenizer().encode(page),
        kernels=kernels,
    )
