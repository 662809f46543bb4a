"""The causality gate's check by values once more: with trained weights, on rows that are about to be scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from muse_core.contracts import Batch
from muse_core.evaluation.causality import Leak, own_precision_leak
from muse_core.evaluation.not_finite import NotFinite
from muse_core.model.precision import Precision


def trained_leak(
    model: Any,
    vocabulary_size: int,
    batches: Iterable[Batch],
    precision: Precision,
    *,
    routed: bool,
    agreed: Callable[[bool], bool] = bool,
) -> tuple[Leak | NotFinite | None, list[int]]:
    """The first leak in ``batches``, which are on the device, and how many tokens the rows of those have that were
    judged before it: those whose outputs are no finite numbers are not, nor those of a single token. ``routed`` and
    ``agreed`` as in ``own_precision_leak``."""
    judged: list[int] = []
    for batch in batches:
        length, places = batch.inputs.shape[1], later_places(batch)
        try:
            leak = own_precision_leak(
                model, vocabulary_size, length, precision, routed=routed, ids=batch.inputs, tokens=batch.tokens,
                places=places, judges_diverged=False, agreed=agreed,
            )
        except FloatingPointError:
            continue
        if leak is not None:
            return leak, judged
        judged += [length] if places else []
    return None, judged


def later_places(batch: Batch) -> list[int]:
    """Tokens from which on later ones are changed to see what the scored outputs of a batch before them depend on: one
    in the middle of what is scored and one in its last quarter, behind the training length in rows of twice that. One
    is odd and one even, since a chunk's edge may hide a leak within it, and none begins a document in every row, which
    may hide one within documents."""
    length = batch.inputs.shape[1]
    scored = batch.loss_mask.any(0).nonzero()
    told = min(length, int(scored.max()) + 2) if len(scored) else length  # the next token of the last is its label
    resets = batch.tokens.resets
    found: list[int] = []
    for wanted in (told // 2, told * 3 // 4):
        free = [
            place for place in (*range(wanted, told), *range(wanted - 1, 0, -1))
            if place and (resets is None or not resets[:, place].all())
        ]
        other = [place for place in free if not found or (place - found[0]) % 2]
        found += (other or free)[:1]
    return sorted(set(found))
