"""Early exit: a router with two destinations, after whose decision halted tokens are absent.

Letters: B batch rows, N tokens of the call, n the most tokens that any row still has, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from muse_core.contracts import Routing, State, Tokens
from muse_core.model.options import Exit
from muse_core.model.plan import ExitSite

HEAD = 1
"""The destination that leaves; 0 is the next block."""


class Present(NamedTuple):
    """The tokens that are still in the stack, and what the head will read."""

    x: Tensor
    """(B, n, D)."""
    signals: dict[str, Tensor]
    """(B, n, …) each."""
    tokens: Tokens
    """(B, n); ``valid`` is false where a row has fewer than n."""
    place: Tensor
    """(B, n) int: where each stood in the call."""
    halted: Tensor
    """(B, n): halting probability spent so far."""
    hidden: Tensor
    """(B, N, D): Σ over the blocks passed of the probability of leaving there × the stream there."""
    passed: Tensor
    """Scalar: Σ over tokens and the blocks passed of the probability of leaving there × the share of blocks passed."""


class Exits(nn.Module):
    """The routers by the depth after which they decide, and the mechanism of adaptive computation time.

    A token leaves after the first block at which its halting probabilities h_b add up to ``threshold``. What the head
    reads is Σ_b p_b x_b with p_b = h_b, and the rest of 1 where the token leaves. State of a depth: ``reset`` (B,)
    bool, a document has started since the row's last token that stayed. Source: Graves 2016; mathematics §5.
    """

    def __init__(self, options: Exit, sites: Sequence[ExitSite], context: Any):
        super().__init__()
        self.options = options
        self.depth = context.depth
        self.open = True
        for site in sites:
            self.add_module(str(site.block), context.exit(site))

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Inside, no token leaves before the last block, so that every layer reads all of them."""
        before, self.open = self.open, False
        try:
            yield
        finally:
            self.open = before

    def start(self, x: Tensor, tokens: Tokens) -> Present:
        """Every token, before the first block."""
        place = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        halted = torch.zeros(place.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        return Present(x, {}, tokens, place, halted, torch.zeros_like(x), halted.new_zeros(()))

    def leave(self, block: int, present: Present, state: State) -> tuple[Present, dict[str, Tensor], Routing]:
        """Let tokens leave after ``block``; returns those that stay, this depth's state and what the router said."""
        routing: Routing = self.get_submodule(str(block))(present.x, present.signals, present.tokens)
        probability = (routing.weight * (routing.expert == HEAD)).sum(-1).to(present.halted.dtype)
        total = present.halted + probability
        leaves = total >= self.options.threshold if self.open else torch.zeros_like(total, dtype=torch.bool)
        share = torch.where(leaves, 1 - present.halted, probability)
        present = _read(present, share, (block + 1) / self.depth)._replace(halted=total)
        kept, reset = stay(present, ~leaves, None if state is None else state["reset"])
        return kept, {"reset": reset}, routing

    def finish(self, present: Present) -> tuple[Tensor, Tensor]:
        """What the head reads (B, N, D), and what pondering costs in nats, once the last block has been passed."""
        present = _read(present, 1 - present.halted, 1.0)
        return present.hidden, self.options.ponder * present.passed


def _read(present: Present, share: Tensor, passed: float) -> Present:
    """The head reads ``share`` (B, n) of the present tokens' stream, after ``passed`` of the blocks."""
    if present.tokens.valid is not None:
        share = share.masked_fill(~present.tokens.valid, 0.0)
    part = share[..., None].to(present.x.dtype) * present.x
    hidden = present.hidden.scatter_add(1, present.place[..., None].expand_as(part), part)
    return present._replace(hidden=hidden, passed=present.passed + passed * share.sum())


def stay(present: Present, stays: Tensor, carried: Tensor | None) -> tuple[Present, Tensor]:
    """The tokens of ``stays`` (B, n) bool, moved together, and which rows have a start of a document to hand on.

    A start that falls on a removed token goes to the row's next token that stays; ``carried`` (B,) bool is one left
    from earlier calls. Reads the number of tokens from the device, since shapes follow from it.
    """
    tokens = present.tokens
    if tokens.valid is not None:
        stays = stays & tokens.valid
    count = stays.sum(1)
    most, least = (int(number) for number in torch.stack((count.max(), count.min())).tolist())
    index = torch.argsort(~stays, dim=1, stable=True)[:, :most]
    valid = None if least == most else torch.arange(most, device=index.device) < count[:, None]
    resets, pending = _handed_on(tokens, index, valid, carried)

    def moved(x: Tensor) -> Tensor:
        if least == stays.shape[1]:
            return x
        return x.gather(1, index.view(*index.shape, *(1,) * (x.ndim - 2)).expand(*index.shape, *x.shape[2:]))

    kept = present._replace(
        x=moved(present.x),
        signals={name: moved(value) for name, value in present.signals.items()},
        tokens=Tokens(moved(tokens.positions), tokens.offset, resets, valid),
        place=moved(present.place),
        halted=moved(present.halted),
    )
    return kept, pending


def _handed_on(
    tokens: Tokens, index: Tensor, valid: Tensor | None, carried: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Which of the tokens at ``index`` (B, n) start a document now (B, n), and which rows have a start left (B,)."""
    rows = index.shape[0]
    starts = tokens.starts()
    if starts is None and carried is None:
        return None, torch.zeros(rows, dtype=torch.bool, device=index.device)
    started = torch.zeros_like(tokens.positions) if starts is None else starts.long().cumsum(1)
    if carried is not None:
        started = started + carried.long()[:, None]
    here = started.gather(1, index)
    if valid is not None:  # padding repeats the last count, and starts nothing
        here = here.masked_fill(~valid, 0).cummax(1).values
    before = torch.cat((torch.zeros_like(here[:, :1]), here[:, :-1]), dim=1)
    handed = here[:, -1] if here.shape[1] else torch.zeros_like(started[:, -1])
    return here > before, started[:, -1] > handed
