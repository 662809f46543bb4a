"""What a gate is worth: held-out loss without it less the loss with it, on the same tokens.

Shapes: R rows of text, N tokens, C gates of a layer, G gates in the model.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import Tokens
from muse_gate_ablation.statistics import entropy


class Worth(NamedTuple):
    """One gate."""

    ablation: float
    """Nats per token that the loss rises when the gate answers every token with its mean."""
    error: float
    """Standard error of that mean over rows of text."""
    entropy: float
    """Bits, of a token's openness."""
    load: float
    """Mean openness σ(z)."""

    def verdict(self, worth: float) -> str:
        """``useful``, ``idle`` or ``harmful`` where two standard errors leave no doubt, otherwise ``undecided``."""
        if self.ablation - 2 * self.error > worth:
            return "useful"
        if self.ablation + 2 * self.error < -worth:
            return "harmful"
        return "idle" if abs(self.ablation) + 2 * self.error <= worth else "undecided"


@torch.no_grad()
def worth_of(model: Any, gates: dict[str, nn.Module], text: Tensor, *, rows: int) -> dict[str, Worth]:
    """Every gate's worth on ``text`` (R, N + 1) of token ids, ``rows`` of them at a time."""
    pieces = text.split(rows)
    seen: dict[str, list[Tensor]] = {name: [] for name in gates}

    def look(name: str) -> Callable[[Tensor], Tensor]:
        def change(z: Tensor) -> Tensor:
            g = z.float().sigmoid()
            seen[name].append(torch.stack((entropy(g).mean(), g.mean())) * len(z))
            return z

        return change

    with contextlib.ExitStack() as stack:
        for name, gate in gates.items():
            stack.enter_context(changed(gate, look(name)))
        whole = row_losses(model, pieces)
    found = {}
    for name, gate in gates.items():
        with changed(gate, lambda z: z.mean((0, 1), keepdim=True).expand_as(z)):
            difference = row_losses(model, pieces) - whole
        open_to = torch.stack(seen[name]).sum(0) / len(text)
        error = difference.std() / math.sqrt(len(text))
        found[name] = Worth(*torch.stack((difference.mean(), error, *open_to.double())).tolist())
    return found


def row_losses(model: Any, pieces: Sequence[Tensor]) -> Tensor:
    """(R,) float64: mean cross-entropy of each row's next tokens, in nats."""
    losses = []
    for ids in pieces:
        inputs, labels = ids[:, :-1], ids[:, 1:]
        positions = torch.arange(inputs.shape[1], device=ids.device).expand_as(inputs)
        scores = model.logits(model(inputs, None, Tokens(positions)).hidden).float()
        losses.append(F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels))
    return torch.cat(losses).double().mean(1)


@contextlib.contextmanager
def changed(gate: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the gate's pre-activations z (B, N, C) go through ``change``."""
    handle = gate.register_forward_hook(lambda module, arguments, z: change(z))
    try:
        yield
    finally:
        handle.remove()
