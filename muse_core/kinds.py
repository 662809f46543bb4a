"""One row a kind of component: everything that differs from kind to kind and is not code. Imports nothing."""

from __future__ import annotations

from typing import NamedTuple


class ComponentKind(NamedTuple):
    """What the core knows of a kind."""

    name: str
    hook: str
    """The hook that lists its components."""
    protocol: str
    """Class of ``muse_core.contracts`` that implementations follow."""
    methods: tuple[str, ...]
    """Methods that the core calls; others of the protocol are optional."""
    suite: str
    """Conformance suite, ``"module:class"`` of ``muse_core.testing``."""
    recipe: str
    """How a recipe chooses one, with ``{name}`` for its name."""
    key: str
    """Last key of the recipe's path to it."""
    namespace: str = ""
    """Kind whose names it shares; its own when empty. A memory layer is a layer."""
    context: bool = True
    """Whether the implementation's constructor is told about its surroundings."""


ROWS = (
    ComponentKind(
        "potential", "muse_potentials", "Potential", ("__init__", "forward"), "potentials:PotentialSuite",
        '[[model.block]]\nuse = "resolvent"\npotential = ["{name}"]', "potential",
    ),
    ComponentKind(
        "memory layer", "muse_memory_layers", "Layer", ("__init__", "forward"), "layers:MemoryLayerSuite",
        '[[model.block]]\nuse = "{name}"', "block", namespace="layer",
    ),
    ComponentKind(
        "router", "muse_routers", "Router", ("__init__", "forward"), "routers:RouterSuite",
        '[[model.block]]\nuse = "experts"\nrouter = "{name}"', "router",
    ),
    ComponentKind(
        "initializer", "muse_initializers", "Initializer", ("__init__", "__call__"),
        "initializers:InitializerSuite",
        '[[initializers]]\nuse = "{name}"\nmatch = "blocks.*.query.weight"', "initializers", context=False,
    ),
    ComponentKind(
        "kernel backend", "muse_kernel_backends", "KernelBackend", ("__init__", "operations", "refuse"),
        "kernel_backends:KernelBackendSuite", '[kernels]\nbackend = ["{name}"]', "backend", context=False,
    ),
    ComponentKind(
        "safety monitor", "muse_safety_monitors", "Monitor",
        ("__init__", "measure", "judge", "wants_probe", "probe", "state_dict", "load_state_dict"),
        "monitors:MonitorSuite", '[[monitors]]\nuse = "{name}"', "monitors",
    ),
    ComponentKind(
        "layer", "muse_layers", "Layer", ("__init__", "forward"), "layers:LayerSuite",
        '[[model.block]]\nuse = "{name}"', "block",
    ),
    ComponentKind(
        "filter", "muse_filters", "Filter", ("__init__", "forward"), "filters:FilterSuite",
        '[[model.block]]\nuse = "fast-weights"\nfilters = ["{name}"]', "filters",
    ),
    ComponentKind(
        "model", "muse_models", "Model", ("__init__", "forward", "embed", "logits"), "models:ModelSuite",
        '[model]\nuse = "{name}"', "model",
    ),
    ComponentKind(
        "stage", "muse_stages", "Stage", ("__init__", "objective", "trainable", "finish"), "stages:StageSuite",
        '[[stages]]\nuse = "{name}"', "stages", context=False,
    ),
    ComponentKind(
        "source", "muse_sources", "Source", ("__init__", "fingerprint", "documents"), "sources:SourceSuite",
        '[data]\nuse = "{name}"', "data",
    ),
    ComponentKind(
        "optimizer", "muse_optimizers", "Optimizer", ("__init__", "build", "kept"), "optimizers:OptimizerSuite",
        '[train]\noptimizer = "{name}"', "optimizer",
    ),
    ComponentKind(
        "schedule", "muse_schedules", "Schedule", ("__init__", "factor"), "schedules:ScheduleSuite",
        '[train]\nschedule = "{name}"', "schedule",
    ),
    ComponentKind(
        "tokenizer", "muse_tokenizers", "TokenizerMaker", ("__init__", "identity", "make", "restore"),
        "tokenizers:TokenizerSuite", '[data]\ntokenizer = "{name}"', "tokenizer", context=False,
    ),
    ComponentKind(
        "sink", "muse_sinks", "Sink", ("__init__", "row", "event", "end", "close"), "sinks:SinkSuite",
        '[telemetry]\nsinks = ["{name}"]', "sinks",
    ),
)
"""In the order in which listings show them."""

KINDS = tuple(row.name for row in ROWS)
BY_NAME = {row.name: row for row in ROWS}
NAMESPACE = {row.name: row.namespace or row.name for row in ROWS}
"""Kinds that share names: a memory layer is a layer, so a recipe asks for either with ``use`` in a block."""


def with_article(kind: str) -> str:
    """The name of a kind as a sentence has it: ``an optimizer``, ``a layer``."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
