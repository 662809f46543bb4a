"""The order of training windows: a permutation computed from (seed, epoch, index), so nothing is stored or resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

ROUNDS = 6


def shuffled(index: np.ndarray, size: int, *, seed: int) -> np.ndarray:
    """Items at the places ``index`` of an endless sequence in which every epoch is a permutation of ``size`` items.

    index: int64 array of any shape, ≥ 0; place i belongs to epoch i // size. Returns int64 of the same shape in
    [0, size). Depends on nothing but its arguments.
    """
    epoch, place = np.divmod(index, size)
    item = np.empty_like(index)
    for number in np.unique(epoch):
        chosen = epoch == number
        item[chosen] = permute(place[chosen], size, seed=seed, epoch=int(number))
    return item


def permute(place: np.ndarray, size: int, *, seed: int, epoch: int) -> np.ndarray:
    """A pseudo-random bijection of [0, size), at the given places (int64, one axis).

    A Feistel network (Luby and Rackoff 1988) permutes the smallest even number of bits that holds ``size``; results
    outside the range are permuted again until they fall inside (cycle walking, Black and Rogaway 2002), fewer than
    four times on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    digest = hashlib.blake2b(f"{seed}/{epoch}/{size}".encode(), digest_size=8 * ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    item = _feistel(place.astype(np.uint64), half, keys)
    while (outside := item >= size).any():
        item[outside] = _feistel(item[outside], half, keys)
    return item.astype(np.int64)


def _feistel(value: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = value >> bits, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << bits) | right


def _mix(value: np.ndarray) -> np.ndarray:
    """Finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = value ^ (value >> np.uint64(31))
    return mixed


def data_step(step: int, quarantine: Sequence[tuple[int, int]] = ()) -> int:
    """Which step's data ``step`` reads when the data of quarantined steps are passed over.

    quarantine: half-open ranges (first, end) of data steps. Without it the answer is ``step``.
    """
    for first, end in _merged(quarantine):
        if step < first:
            break
        step += end - first
    return step


def _merged(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same steps as disjoint half-open ranges in rising order."""
    pending: tuple[int, int] | None = None
    for first, end in sorted((first, end) for first, end in ranges if first < end):
        if pending is None:
            pending = first, end
        elif first <= pending[1]:
            pending = pending[0], max(pending[1], end)
        else:
            yield pending
            pending = first, end
    if pending:
        yield pending
