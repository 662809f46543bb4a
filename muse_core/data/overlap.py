"""Text that stands verbatim in several documents: which documents share so much of it that they belong into one split,
and how much of the held-out text stands in training text.

The unit is a string of 64 bytes, the same for grouping and for measuring, and exact: a sketch of whole documents
(MinHash, Broder 1997) estimates their Jaccard similarity, which is low where a short document is contained in a long
one, the usual case of quotations, templates and vendored copies. Strings are told apart by a 64-bit polynomial hash
(Karp and Rabin 1987); of large corpora grouping keeps only those whose hash is a multiple of a power of two (Manber
1994), the same ones in every document.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

LENGTH = 64
"""Bytes of a string."""
SHARE = 0.1
"""Documents stay together when they share this part of the strings of the one that has fewer."""
MOST_KEPT = 1 << 22
"""Strings that are kept of a corpus, about: 64 MiB while they are sorted."""
COMMON = 16
"""A string in more documents than this is counted for neighbours only, so that 1,000 copies are not 500,000 pairs."""
BLOCK = 1 << 20
"""Bytes that are hashed at a time: 8 times as many while it lasts."""
MOST_MEASURED = 1 << 23
"""Held-out bytes that are looked for in training text, from the beginning of their shuffled order."""
MULTIPLIER = 0x9E3779B97F4A7C15

Texts = Callable[[int], np.ndarray]
"""Number of a document to its UTF-8 bytes, (bytes,) uint8."""


def group(text: Texts, sizes: Sequence[int]) -> np.ndarray:
    """(documents,) int64: for each document the first one of its group; its own number when it is alone.

    Documents are in one group when they, or others between them, share SHARE of their strings. The same texts in the
    same order give the same groups.
    """
    keep = _keeping(sum(sizes))
    kept = [_kept(text(index), keep) if size >= LENGTH else NOTHING for index, size in enumerate(sizes)]
    hashes = np.concatenate(kept) if kept else NOTHING
    owners = np.repeat(np.arange(len(sizes)), [len(some) for some in kept])
    order = np.argsort(hashes, kind="stable")  # owners stay in the order of documents
    hashes, owners = hashes[order], owners[order]
    changes = np.flatnonzero(hashes[1:] != hashes[:-1]) + 1
    bounds = np.concatenate([[0], changes, [len(hashes)]])
    several = np.flatnonzero(np.diff(bounds) > 1)
    shared: Counter[tuple[int, int]] = Counter()
    for begin, end in zip(bounds[several].tolist(), bounds[several + 1].tolist()):
        found = owners[begin:end].tolist()
        shared.update(itertools.combinations(found, 2) if len(found) <= COMMON else itertools.pairwise(found))
    first = list(range(len(sizes)))
    for (one, other), count in shared.items():
        if count >= SHARE * min(len(kept[one]), len(kept[other])):
            low, high = sorted((_first(first, one), _first(first, other)))
            first[high] = low
    return np.array([_first(first, index) for index in range(len(sizes))], dtype=np.int64)


def shared_bytes(text: Texts, held_out: Mapping[str, Sequence[int]], train: Sequence[int]) -> dict[str, float]:
    """By the name of each set of held-out documents the part of its bytes that lie in a string of 64 bytes which
    training text has too, or make a whole document of fewer bytes which training text has as a document, in [0, 1].
    Exact but for collisions of hashes; of a large set the first MOST_MEASURED bytes are measured. Training text is read
    once for all sets, and once more where held-out documents are that short."""
    measured = {name: _measured(text, documents) for name, documents in held_out.items()}
    short = {text(index).tobytes() for name, some in measured.items()
             for index, hashes in zip(held_out[name], some) if not len(hashes)}
    copied = _documents_among(short, text, train)
    wanted = _different(np.concatenate([NOTHING, *itertools.chain.from_iterable(measured.values())]))
    shared_strings = _found(wanted, (hashes for index in train for hashes in _hashed(text(index))))
    shares = {}
    for name, documents in held_out.items():
        whole = shared = 0
        for index, hashes in zip(documents, measured[name]):
            size = len(text(index))
            if size < LENGTH:
                whole, shared = whole + size, shared + size * (text(index).tobytes() in copied)
                continue
            marks = np.zeros(size + 1, dtype=np.int64)
            places = np.flatnonzero(_within(hashes, shared_strings))
            marks[places] += 1
            marks[places + LENGTH] -= 1
            whole, shared = whole + size, shared + int((marks.cumsum()[:-1] > 0).sum())
        shares[name] = shared / whole if whole else 0.0
    return shares


def _measured(text: Texts, documents: Sequence[int]) -> list[np.ndarray]:
    """Hashes of all strings of the first documents, of about MOST_MEASURED bytes at most."""
    measured: list[np.ndarray] = []
    size = 0
    for index in documents:
        data = text(index)
        measured.append(_all(data))
        size += len(data)
        if size >= MOST_MEASURED:
            break
    return measured


def _documents_among(some: set[bytes], text: Texts, documents: Sequence[int]) -> set[bytes]:
    """Those of ``some``, texts of fewer than 64 bytes, that are a document."""
    if not some:
        return set()
    shorter = (data.tobytes() for index in documents if len(data := text(index)) < LENGTH)
    return some.intersection(shorter)


def _found(wanted: np.ndarray, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Those of the hashes ``wanted``, sorted and different, that are in some block, sorted."""
    if not len(wanted):
        return NOTHING
    found = np.zeros(len(wanted), dtype=bool)
    room = 1 << max(16, (8 * len(wanted)).bit_length())
    mask, other = np.uint64(room - 1), np.uint64(32)
    # Two tables of bits of the hashes pass over nearly all of the training text that is not wanted without a search.
    low, high = np.zeros(room, dtype=bool), np.zeros(room, dtype=bool)
    low[wanted & mask] = True
    high[wanted >> other & mask] = True
    for hashes in blocks:
        likely = hashes[low[hashes & mask]]
        likely = likely[high[likely >> other & mask]]
        likely = likely[_within(likely, wanted)]
        found[np.searchsorted(wanted, likely)] = True
    return wanted[found]


def _within(hashes: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Which hashes are among ``some``, which are sorted: (hashes,) bool."""
    if not len(some):
        return np.zeros(len(hashes), dtype=bool)
    places = np.searchsorted(some, hashes)
    places[places == len(some)] = 0
    return some[places] == hashes


NOTHING = np.empty(0, dtype=np.uint64)


def _first(first: list[int], index: int) -> int:
    """The first document of a group, by the links of a disjoint-set forest, which are shortened on the way."""
    while first[index] != index:
        first[index] = first[first[index]]
        index = first[index]
    return index


def _keeping(size: int) -> int:
    """Of so many strings one is kept in a corpus of ``size`` bytes: a power of two that leaves about MOST_KEPT."""
    return 1 << max(0, (size - 1) // MOST_KEPT).bit_length()


def _kept(data: np.ndarray, keep: int) -> np.ndarray:
    """Hashes of the different strings of a document that are multiples of ``keep``, sorted, uint64."""
    below = np.uint64(keep - 1)
    return _different(np.concatenate([NOTHING, *(hashes[hashes & below == 0] for hashes in _hashed(data))]))


def _different(hashes: np.ndarray) -> np.ndarray:
    """Each value once, sorted. Of numbers that are nearly all different numpy's unique, which hashes them before it
    sorts them, takes several times as long."""
    found = np.sort(hashes)
    return found[np.concatenate([[True], found[1:] != found[:-1]])] if len(found) else found


def _all(data: np.ndarray) -> np.ndarray:
    """Hashes of all strings of a document in their order, (max(0, bytes - 63),) uint64."""
    return np.concatenate([NOTHING, *_hashed(data)])


def _hashed(data: np.ndarray) -> Iterator[np.ndarray]:
    """Hashes of the strings that begin at each byte, block by block, uint64.

    The polynomial sum of 64 bytes comes from six doublings, each of two shorter ones; a final mixing makes its low bits
    depend on all of them.
    """
    for begin in range(0, len(data) - LENGTH + 1, BLOCK):
        hashes = data[begin : begin + BLOCK + LENGTH - 1].astype(np.uint64) + np.uint64(1)
        factor, length = MULTIPLIER, 1
        while length < LENGTH:
            hashes = hashes[:-length] * np.uint64(factor) + hashes[length:]
            factor, length = factor * factor % 2**64, 2 * length
        hashes ^= hashes >> np.uint64(32)
        hashes *= np.uint64(0xD6E8FEB86659FD93)
        yield hashes ^ hashes >> np.uint64(32)
