"""What recipes can say about the task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
from attrs import field, validators


@attrs.frozen(kw_only=True)
class MqarOptions:
    """Multi-query associative recall: a sequence begins with pairs of key and value; later each key comes once more
    among random tokens, and its value is asked for."""

    vocabulary: int = field(default=8192, validator=[validators.ge(8), validators.le(1 << 20)])
    """Number of tokens V: keys are drawn from [1, V/2), values from [V/2, V)."""
    pairs: int = field(default=64, validator=validators.ge(1))
    """Pairs K of an example; four times as many tokens must fit into a sequence."""
    easier: tuple[int, ...] = field(
        default=(), validator=validators.deep_iterable(validators.and_(validators.instance_of(int), validators.ge(1)))
    )
    """Smaller numbers of pairs that training examples have as well, in equal shares. Held-out examples always have
    ``pairs``."""
    power: float = field(default=0.01, validator=validators.gt(0.0))
    """a of the weight i^(a − 1) of slot i: questions crowd after the pairs when it is small."""
    seed: int = field(default=0, validator=[validators.ge(0), validators.lt(2**31)])
    """Seed of all examples."""

    def __attrs_post_init__(self) -> None:
        if self.pairs > self.vocabulary // 2 - 1:
            raise ValueError(
                f"pairs must have distinct keys, of which a vocabulary of {self.vocabulary} has "
                f"{self.vocabulary // 2 - 1}, not {self.pairs}"
            )
        if any(number > self.pairs for number in self.easier):
            raise ValueError(f"easier holds numbers of pairs up to pairs = {self.pairs}, got {list(self.easier)}")

    def problems(self, recipe: Any) -> Iterable[str]:
        length = recipe.train.sequence_length
        if length % 2 or length < 4 * self.pairs:
            yield (
                f"{self.pairs} pairs need an even train.sequence_length of at least {4 * self.pairs}, which {length} "
                "is not"
            )


@attrs.frozen(kw_only=True)
class NeedleOptions:
    """Numbers hidden in English text (what Python's help says of the language), asked for at its end by the words that
    stood before them. Tokens are bytes, and only digits of answers count."""

    needles: int = field(default=4, validator=[validators.ge(1), validators.le(16)])
    """Numbers of an example, each with a key of its own; all are asked for, in another order."""
    digits: int = field(default=3, validator=[validators.ge(1), validators.le(16)])
    """Digits of a number."""
    distance: tuple[int, int] = (16, 512)
    """Tokens of text between a needle and the questions, log-uniform between these two, or up to as many as a sequence
    has room for."""
    seed: int = field(default=0, validator=[validators.ge(0), validators.lt(2**31)])
    """Seed of all examples."""

    def __attrs_post_init__(self) -> None:
        nearest, farthest = self.distance
        if not 1 <= nearest <= farthest:
            raise ValueError(f"distance must be two numbers with 1 ≤ nearest ≤ farthest, got {list(self.distance)}")

    def problems(self, recipe: Any) -> Iterable[str]:
        least = self.needles * (49 + 2 * self.digits) + self.distance[0] - 1
        if recipe.train.sequence_length < least:
            yield (
                f"{self.needles} needles at least {self.distance[0]} tokens back need a train.sequence_length of at "
                f"least {least}, which {recipe.train.sequence_length} is not"
            )
