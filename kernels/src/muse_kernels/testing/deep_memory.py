"""Random problems of deep memory and the comparison that every test of them makes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..deep_memory_arguments import DeepMemoryState

LEAVES = ("query", "key", "value", "rate", "log_momentum", "log_decay", "weights")
KINDS = ("gated", "linear", "without momentum")


@dataclass
class Problem:
    """Inputs of one call; all floating ones are leaves that ask for gradients, those of the carried state too."""

    query: Tensor
    key: Tensor
    value: Tensor
    rate: Tensor
    log_momentum: Tensor | None
    log_decay: Tensor
    weights: Tensor
    initial: DeepMemoryState | None
    resets: Tensor | None
    options: dict

    @property
    def leaves(self) -> list[Tensor]:
        own = [getattr(self, name) for name in LEAVES]
        return [x for x in (*own, *(self.initial or ())) if x is not None and x.numel()]

    def rebuilt(self, leaves: Sequence[Tensor]) -> "Problem":
        """The same problem of other leaves, in the order of `leaves`."""
        given = iter(leaves)

        def taken(x: Tensor | None) -> Tensor | None:
            return x if x is None or not x.numel() else next(given)

        own = {name: taken(getattr(self, name)) for name in LEAVES}
        initial = None if self.initial is None else DeepMemoryState(*map(taken, self.initial))
        return replace(self, **own, initial=initial)

    def run(self, operation, **options) -> tuple[Tensor, DeepMemoryState]:
        """(output, final) of some deep_memory."""
        return operation(
            *(getattr(self, name) for name in LEAVES),
            initial=self.initial,
            resets=self.resets,
            **{**self.options, **options},
        )

    def piece(self, start: int, stop: int, state: DeepMemoryState | None) -> "Problem":
        """Tokens start to stop after a state."""
        cut = {name: getattr(self, name) for name in LEAVES[:-1]}
        cut = {name: None if x is None else x[:, start:stop] for name, x in cut.items()}
        resets = None if self.resets is None else self.resets[:, start:stop]
        offset = (self.options["offset"] + start) % self.options["chunk"]
        return replace(self, **cut, initial=state, resets=resets, options={**self.options, "offset": offset})

    def with_resets(self, resets: Tensor | None) -> "Problem":
        return replace(self, resets=resets)

    def to(self, dtype: torch.dtype, device: str | None = None) -> "Problem":
        """The same rounded inputs in another dtype, as fresh leaves."""
        moved = self.rebuilt([x.detach().to(device=device, dtype=dtype).requires_grad_() for x in self.leaves])
        if moved.initial is not None:
            moved.initial = DeepMemoryState(*(x.to(device=device, dtype=dtype) for x in moved.initial))
        return replace(moved, resets=None if self.resets is None else self.resets.to(device=device))


def draw(
    tokens: int,
    *,
    kind: str = "gated",
    batch: int = 2,
    heads: int = 2,
    key_width: int = 4,
    hidden: int = 6,
    resets: bool = False,
    initial: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    chunk: int = 4,
    offset: int | None = None,
    window: int = 1,
    orthogonalise: bool = True,
    rate: float | None = None,
) -> Problem:
    """A problem whose gates and resets vary by token, inside a chunk unless `offset` says otherwise."""
    random = torch.Generator().manual_seed(seed)
    offset = (0 if not initial else 3) % chunk if offset is None else offset
    rate = 0.5 / window if rate is None else rate

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random, dtype=torch.float64)

    matrices, hidden = (1, hidden) if kind == "linear" else (3, hidden)
    value_width = hidden if kind == "linear" else key_width
    shape = (batch, tokens, heads)
    state_shape = (batch, heads, matrices, key_width, hidden)
    tensors = {
        "query": normal(*shape, key_width),
        "key": torch.nn.functional.normalize(normal(*shape, key_width), dim=-1),
        "value": normal(*shape, value_width),
        "rate": uniform(*shape) * rate,
        "log_momentum": None if kind == "without momentum" else -uniform(*shape),
        "log_decay": -uniform(*shape) * 0.3,
        "weights": normal(heads, matrices, key_width, hidden) * key_width**-0.5,
    }
    state = DeepMemoryState(
        weights=normal(*state_shape) * key_width**-0.5,
        momentum=normal(*state_shape) * 0.3,
        pending=0.1 * (normal(batch, heads, 1, 1, 1).abs() if orthogonalise else normal(*state_shape)),
        log_kept=-0.3 * uniform(batch, heads),
        window_key=normal(batch, window - 1, heads, key_width),
        window_value=normal(batch, window - 1, heads, value_width),
        window_rate=uniform(batch, window - 1, heads) * rate,
    )
    tensors = {name: x if x is None else x.to(dtype).requires_grad_() for name, x in tensors.items()}
    if offset == 0:
        state = state._replace(pending=torch.zeros_like(state.pending), log_kept=torch.zeros_like(state.log_kept))
    carried = DeepMemoryState(*(x.to(dtype).requires_grad_() for x in state)) if initial else None
    starts = uniform(batch, tokens) < 0.15 if resets else None
    options = {"chunk": chunk, "offset": offset, "window": window, "orthogonalise": orthogonalise}
    return Problem(**tensors, initial=carried, resets=starts, options=options)


def results(problem: Problem, operation, **options) -> dict[str, Tensor]:
    """Output, final state and the gradients to every leaf under random cotangents that depend on the shapes only."""
    output, final = problem.run(operation, **options)
    returned = {"output": output, **final._asdict()}
    random = torch.Generator().manual_seed(1)
    total = 0.0
    for x in returned.values():
        weight = torch.randn(tuple(x.shape), generator=random, dtype=torch.float64)
        total = total + (weight.to(x) * x).sum()
    found = torch.autograd.grad(total, problem.leaves, allow_unused=True)
    gradients = {f"gradient of leaf {place}": x for place, x in enumerate(found)}
    return returned | {name: x for name, x in gradients.items() if x is not None}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Each result within `tolerance` of the largest magnitude of the expected one."""
    assert actual.keys() == expected.keys()
    for name, e in expected.items():
        a = actual[name]
        assert a.shape == e.shape, name
        if not e.numel():
            continue
        error, scale = (a.to(e) - e).abs().max(), e.abs().max()
        assert error <= tolerance * max(scale, 1e-3), f"{name}: error {error:.2e} at scale {scale:.2e}"
