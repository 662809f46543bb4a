"""What is wrong with the numbers of heads that options give, in sentences. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def indivisible(recipe: Any, heads: int, *, rotary: bool = False) -> Iterator[str]:
    """Where ``heads`` do not divide the recipe's width, or leave heads of an odd size that positions cannot rotate."""
    width = getattr(recipe.model.options, "width", None)
    if width is not None and width % heads:
        yield f"heads is {heads}, which does not divide the width {width} - choose a divisor"
    elif width is not None and rotary and width // heads % 2:
        yield (
            f"rotary positions turn pairs of numbers, but width {width} over {heads} heads is the odd "
            f"{width // heads} - choose other heads or rotary = false"
        )


def check_groups(heads: int, key_value_heads: int | None) -> None:
    """Raises ValueError where query heads are no multiple of the heads of keys and values."""
    if heads % (key_value_heads or heads):
        raise ValueError(f"heads = {heads} is not a multiple of key_value_heads = {key_value_heads}")
