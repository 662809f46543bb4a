"""The ``stack`` model: embedding, blocks of residual layers y = x + update(norm(x)), norm, head.

Letters: B batch rows, N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from muse_core.component import provided
from muse_core.contracts import LayerOutput, ModelOutput, State, Tokens
from muse_core.errors import PluginError, RecipeError
from muse_core.model.exit import Exits
from muse_core.model.flops import flops_per_token
from muse_core.model.kernels import BoundKernels
from muse_core.model.options import StackOptions
from muse_core.model.plan import Site, periods, plan
from muse_core.model.precision import product_dtype
from muse_core.model.projections import plain, scores
from muse_core.model.states import said, unstorable

CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.Sequential)


def update_statistics(model: nn.Module, metrics: Mapping[str, float], progress: float) -> None:
    """Call ``update_statistics`` of every module in ``model`` that has it; see ``contracts.UpdatesStatistics``.

    ``metrics`` are those of the model's output: ``blocks.3.fast-weights/energy`` is the layer's own, and
    ``blocks.3.fast-weights/snr/signal_to_noise`` that of the module ``blocks.3.fast-weights.filters.snr``.
    """
    if not any(map(has_statistics, within(model))):  # in every step, between the device's work of two
        return
    for name, module in model.named_modules():
        if module is not model and has_statistics(module):
            own = {}
            for prefix in prefixes(model, name):
                own |= {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
            module.update_statistics(own, progress)


def has_statistics(module: nn.Module) -> bool:
    """``hasattr``, which takes long to find that one of torch's modules has no ``update_statistics``."""
    kind: Any = type(module)
    if kind.__getattr__ is not nn.Module.__getattr__:
        return hasattr(module, "update_statistics")
    return hasattr(kind, "update_statistics") or "update_statistics" in vars(module)


def within(model: nn.Module) -> Iterator[nn.Module]:
    """The modules in ``model``, in no promised order and a shared one as often as it is held: as ``modules()``, without
    names."""
    waiting: list[nn.Module | None] = [*model._modules.values()]
    while waiting:
        module = waiting.pop()
        if module is not None:
            yield module
            waiting.extend(module._modules.values())


def prefixes(model: nn.Module, name: str) -> Iterator[str]:
    """How the metrics of the module ``name`` may begin: by the full name of a module around it, or its own, and by
    its place within that one."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        host, rest = ".".join(parts[:length]), ".".join(parts[length:])
        yield f"{host}/{place_of(model.get_submodule(host), rest)}/" if rest else f"{host}/"


def place_of(host: nn.Module, path: str) -> str:
    """Where a host returns what a module nested in it measures: the module's path, without containers on the way and
    by slashes. ``filters.snr`` gives ``snr`` and ``router`` itself."""
    parts = path.split(".")
    walked = (".".join(parts[: length + 1]) for length in range(len(parts)))
    return "/".join(part for part, way in zip(parts, walked) if not isinstance(host.get_submodule(way), CONTAINERS))


class BlockOutput(NamedTuple):
    """What a block returns."""

    x: Tensor
    state: dict[str, State]
    signals: dict[str, Tensor]
    losses: dict[str, Tensor]
    """By layer and name. Nothing in a block's computation knows its depth: blocks compiled one by one share what
    is compiled."""
    metrics: dict[str, Tensor]


def make_norm(kind: str, width: int, kernels: BoundKernels | None = None) -> nn.Module:
    """Normalisation over the last axis with a learned gain; ``kind`` is rms or layer. ``kernels``: those of the model,
    to train with."""
    if kind != "rms":
        return nn.LayerNorm(width)
    if kernels is None or kernels.device != "cpu":
        return nn.RMSNorm(width, eps=1e-6)
    return RMSNorm(width, kernels.bind("gated_norm", sizes={"features": width}))


class RMSNorm(nn.RMSNorm):
    """torch's, which on a CPU is six operations that each read all tokens, and as many backward: where gradients are
    wanted there, a kernel's. For the few tokens of a generation torch's are quicker called."""

    def __init__(self, width: int, kernel: Callable[..., Tensor]):
        super().__init__(width, eps=1e-6)
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """x (…, D) → the same shape and dtype."""
        if torch.is_grad_enabled() and x.device.type == "cpu":
            return self.kernel(x, self.weight, None, epsilon=self.eps)
        return super().forward(x)


def under(index: int, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a block measured, by full names."""
    return {f"blocks.{index}.{key}": value for key, value in values.items()}


class Block(nn.Module):
    """The residual layers at one depth, by name."""

    def __init__(self, sites: tuple[Site, ...], options: StackOptions, context: Any):
        super().__init__()
        self.sites = sites
        self._due = {
            site.name: {name: shape for name, shape in provided(site.use.options, options.width).items()
                        if name in site.publish}
            for site in sites
        }
        """Layer → the signals that it must return, with their trailing shape."""
        self.dropout = nn.Dropout(options.dropout)
        self.norms = nn.ModuleDict()
        for site in sites:
            self.norms[site.name] = make_norm(options.norm, options.width, context.kernels)
            self.add_module(site.name, context.layer(site))

    def forward(
        self, x: Tensor, state: dict[str, State] | None, signals: dict[str, Tensor], tokens: Tokens
    ) -> BlockOutput:
        """x (B, N, D); ``state`` by layer name, None at the start. ``signals`` are not changed: the new ones return."""
        signals = dict(signals)
        states: dict[str, State] = {}
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        for site in self.sites:
            step = self.get_submodule(site.name)(
                self.norms[site.name](x), None if state is None else state.get(site.name), signals, tokens
            )
            own = site.use.options
            fixed = getattr(own, "ignores_stream", False) or getattr(own, "adds_nothing", False)
            fault = departure(step, x, self._due[site.name], differentiable=not fixed)
            if fault is not None:
                raise PluginError(f"{site.full_name}: {site.use.title} does not keep the contract: {fault}")
            x = x + self.dropout(step.update)
            states[site.name] = step.state
            signals.update(step.signals)
            losses.update({f"{site.name}/{key}": value for key, value in step.losses.items()})
            metrics.update({f"{site.name}/{key}": value for key, value in step.metrics.items()})
        # Made once: torch 2.11 compiles no NamedTuple that _replace returns.
        return BlockOutput(x, states, signals, losses, metrics)


class Stack(nn.Module):
    """A causal language model made of the recipe's residual layers.

    ``forward(inputs, state, tokens)``: ``inputs`` are ids (B, N) or embeddings (B, N, D); ``state`` is what the last
    call returned, None at the start. One call over N tokens, calls over pieces with the state carried, and calls token
    by token agree to 1e-10 in float64. A piece of no tokens, N = 0, changes nothing: no layer is called, the state is
    returned as it came, and there are neither losses nor metrics.
    """

    def __init__(self, options: StackOptions, context: Any):
        super().__init__()
        laid = plan(options, publish_all=context.publish_all)
        if laid.problems:
            raise RecipeError(f"{path}: {sentence}" for path, sentence in laid.problems)
        self.vocabulary_size: int = context.vocabulary_size
        self.activation_checkpointing = context.activation_checkpointing
        self.keeps_random_state = not context.recorded
        self.periods = periods(options)
        with context.seeded("embedding"):
            self.embedding = nn.Embedding(context.vocabulary_size, options.width)
            nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList()
        for sites in laid.blocks:
            self.blocks.append(Block(sites, options, context))
            if len(self.blocks) == 1:
                per_block = sum(p.numel() * p.element_size() for p in self.blocks.parameters())
                context.check_size(per_block * options.depth)
            context.built(f"blocks.{len(self.blocks) - 1}", self.blocks[-1])
        self.exits = Exits(options.exit, laid.exits, context) if options.exit is not None else None
        self.costs = [flops_per_token(block) for block in self.blocks]
        self.norm = make_norm(options.norm, options.width, context.kernels)
        self.head = None
        if not options.tie_embeddings:
            with context.seeded("head"):
                self.head = nn.Linear(options.width, context.vocabulary_size, bias=False)
                nn.init.normal_(self.head.weight, std=1 / math.sqrt(options.width) / 4)

    def forward(self, inputs: Tensor, state: State = None, tokens: Tokens | None = None) -> ModelOutput:
        """See the class. ``tokens`` None: one document from position 0 in every row."""
        x = inputs if inputs.is_floating_point() else self.embed(inputs)
        if tokens is None:
            positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
            tokens = Tokens(positions)
        if x.shape[1] == 0:
            return ModelOutput(self.norm(x), state, {}, {})
        if self.exits is not None:
            return self.leaving_early(self.exits, x, state, tokens)
        new_state: dict[str, State] = {}
        signals: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        for index, block in enumerate(self.blocks):
            passed = self.through(block, x, None if state is None else state.get(str(index)), signals, tokens)
            x, signals = passed.x, passed.signals
            new_state[str(index)] = passed.state
            losses.update(under(index, passed.losses))
            metrics.update(under(index, passed.metrics))
        return ModelOutput(self.norm(x), new_state, losses, metrics)

    def through(
        self, block: nn.Module, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens
    ) -> BlockOutput:
        """One block, with its activations recomputed in the backward pass where the recipe says so."""
        passed: BlockOutput
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            passed = checkpoint(
                block, x, state, signals, tokens, use_reentrant=False, preserve_rng_state=self.keeps_random_state
            )
        else:
            passed = block(x, state, signals, tokens)
        return passed

    def leaving_early(self, exits: Exits, x: Tensor, state: State, tokens: Tokens) -> ModelOutput:
        """``forward`` where tokens may leave. A block that no token reaches is skipped and keeps its state."""
        state = {} if state is None else state
        new_state = dict.fromkeys(map(str, range(len(self.blocks)))) | state
        decided: dict[str, State] = dict(state.get("exits", {}))
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        slots: list[int] = []
        present = exits.start(x, tokens)
        for index, block in enumerate(self.blocks):
            if present.x.shape[1] == 0:
                break
            slots.append(present.x.shape[0] * present.x.shape[1])
            passed = self.through(block, present.x, new_state[str(index)], present.signals, present.tokens)
            present = present._replace(x=passed.x, signals=passed.signals)
            new_state[str(index)] = passed.state
            losses.update(under(index, passed.losses))
            metrics.update(under(index, passed.metrics))
            if hasattr(exits, str(index)):
                present, decided[str(index)], routing = exits.leave(index, present, decided.get(str(index)))
                losses.update({f"exits.{index}/{key}": value for key, value in routing.losses.items()})
                metrics.update({f"exits.{index}/{key}": value for key, value in routing.metrics.items()})
        hidden, losses["exit/ponder"] = exits.finish(present)
        metrics |= self.spent(slots, x)
        return ModelOutput(self.norm(hidden), new_state | {"exits": decided}, losses, metrics)

    def spent(self, slots: list[int], x: Tensor) -> dict[str, Tensor]:
        """What the blocks computed, padding of ragged rows included, and what they would have without the exit;
        ``slots`` are tokens by block."""
        whole = x.shape[0] * x.shape[1]
        spent = sum(count * cost for count, cost in zip(slots, self.costs))
        numbers = {
            "exit/flops_spent_sum": spent,
            "exit/flops_saved_sum": whole * sum(self.costs) - spent,
            "exit/blocks": sum(slots) / whole,
        }
        return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in numbers.items()}

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, N) → embeddings (B, N, D)."""
        return self.embedding(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (B, N, D) → scores (B, N, vocabulary)."""
        if self.head is None:
            return scores(hidden, self.embedding.weight)
        return scores(hidden, self.head.weight) if plain(self.head) else self.head(hidden)

    def update_statistics(self, metrics: dict[str, float], progress: float) -> None:
        """Hand each component its own reduced measures, once per accepted optimiser step."""
        update_statistics(self, metrics, progress)


def departure(
    output: Any, x: Tensor, signals: Mapping[str, tuple[int, ...]], *, differentiable: bool = True
) -> str | None:
    """How the output of a layer departs from ``contracts.LayerOutput``, in half a sentence, or None.

    x (B, N, D): the residual stream that the update will be added to. ``signals``: the names that are due, with their
    trailing shape. ``differentiable``: the update depends on the stream, so that with gradients enabled it has one.
    """
    if not isinstance(output, LayerOutput):
        return f"forward returned {said(output)} where contracts.LayerOutput is due"
    update = output.update
    if not isinstance(update, Tensor):
        return f"the update is {said(update)} where a tensor is due"
    if update.shape != x.shape:
        return f"the update has shape {tuple(update.shape)} where {tuple(x.shape)} is due"
    if update.dtype not in (x.dtype, product_dtype(x)):
        return f"the update is {_name(update.dtype)} for a stream in {_name(x.dtype)}"
    if update.device != x.device:
        return f"the update is on {update.device} and the stream on {x.device}"
    if differentiable and x.requires_grad and torch.is_grad_enabled() and not update.requires_grad:
        return (
            "the update has no gradient, so nothing before it could learn - if it is meant not to depend on the "
            "stream, its options class says ignores_stream = True"
        )
    return _wrong_signals(output.signals, x, signals) or _wrong_scalars(output, x) or unstorable(output.state, "state")


def _wrong_signals(found: Any, x: Tensor, due: Mapping[str, tuple[int, ...]]) -> str | None:
    if not isinstance(found, dict):
        return f"signals is {said(found)} where a dict is due"
    missing, extra = sorted(set(due) - set(found)), sorted(set(found) - set(due))
    if missing:
        return f"the signal {missing[0]!r} is missing, which a later layer reads"
    if extra:
        return f"there is a signal {extra[0]!r} that is not in context.publish"
    for name, trailing in due.items():
        value, shape = found[name], (*x.shape[:2], *trailing)
        if not isinstance(value, Tensor):
            return f"the signal {name!r} is {said(value)} where a tensor is due"
        if tuple(value.shape) != shape:
            return f"the signal {name!r} has shape {tuple(value.shape)} where {shape} is due"
        if value.is_complex():
            return f"the signal {name!r} is complex; a trailing axis of 2 is due"
        if value.device != x.device:
            return f"the signal {name!r} is on {value.device} and the stream on {x.device}"
    return None


def _wrong_scalars(output: LayerOutput, x: Tensor) -> str | None:
    for what, values in (("loss", output.losses), ("metric", output.metrics)):
        if not isinstance(values, dict):
            return f"{'losses' if what == 'loss' else 'metrics'} is {said(values)} where a dict is due"
        for name, value in values.items():
            if not isinstance(value, Tensor):
                return f"the {what} {name!r} is {said(value)} where a scalar tensor is due"
            if value.shape != ():
                return f"the {what} {name!r} has shape {tuple(value.shape)} where a scalar is due"
            if value.is_complex():
                return f"the {what} {name!r} is complex"
            if what == "loss" and not value.is_floating_point():
                return f"the loss {name!r} is {_name(value.dtype)}"
            if what == "loss" and value.device != x.device:
                return f"the loss {name!r} is on {value.device} and the stream on {x.device}"
            if what == "metric" and value.requires_grad:
                return f"the metric {name!r} has a gradient; it must be detached"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
