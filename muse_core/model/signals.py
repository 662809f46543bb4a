"""Signals of an earlier layer for a layer of another number of heads or channels."""

from __future__ import annotations

from torch import Tensor


def regrouped(signal: Tensor, groups: int, name: str, what: str = "heads") -> Tensor:
    """A signal called ``name``, one number a head (…, G), as (…, groups): means of equal groups of neighbours, or
    repetition when G is the smaller number.

    Raises ValueError when neither number divides the other; ``what`` is what the groups are.
    """
    given = signal.shape[-1]
    if given % groups == 0:
        return signal.unflatten(-1, (groups, given // groups)).mean(-1)
    if groups % given == 0:
        return signal.repeat_interleave(groups // given, dim=-1)
    raise ValueError(
        f"the {name} signal has {given} heads, which neither divides nor is a multiple of {what} = {groups}"
    )
