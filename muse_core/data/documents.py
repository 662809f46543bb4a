"""Documents on their way from a source to token files: read once onto disk, then divided among the splits."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muse_core.contracts import Source
from muse_core.data.permutation import permute
from muse_core.errors import DataError

SPLITS = ("train", "validation", "canary", "test")
CANARY_BYTES = 1 << 20
REPORT_EVERY = 256
ONE_SIDED = 0.25
"""Share of a held-out split's bytes from which on a group of documents that are alike is spoken of."""

Report = Callable[[str, int, "int | None"], None]
"""Called with what is being done, the amount done and the whole amount (None while unknown)."""


class Spool:
    """The text of every document in one file, so that a source is read once however often its text is needed; what they
    are called in another."""

    def __init__(
        self, path: Path, ends: Sequence[int], fixed: Sequence[str | None], names: Path, name_ends: Sequence[int],
        left_out: Sequence[str] = (),
    ):
        self.fixed = list(fixed)
        """Split that the source gave each document, or None."""
        self.left_out = left_out
        """What to say about documents that were left out."""
        self._ends, self._name_ends = (np.concatenate([[0], np.asarray(some, np.int64)]) for some in (ends, name_ends))
        self._text, self._names = (
            np.memmap(file, dtype=np.uint8, mode="r") if ends else np.empty(0, np.uint8) for file in (path, names)
        )

    def __len__(self) -> int:
        return len(self._ends) - 1

    def text(self, index: int) -> str:
        return bytes(self._text[self._ends[index] : self._ends[index + 1]]).decode()

    def data(self, index: int) -> np.ndarray:
        """UTF-8 bytes of a document, (bytes,) uint8."""
        return self._text[self._ends[index] : self._ends[index + 1]]

    def described(self, index: int) -> dict[str, Any]:
        """``name`` and ``source`` of a document."""
        found: dict[str, Any] = json.loads(bytes(self._names[self._name_ends[index] : self._name_ends[index + 1]]))
        return found

    def num_bytes(self, index: int) -> int:
        """UTF-8 length of a document."""
        return int(self._ends[index + 1] - self._ends[index])


def spool(source: Source, path: Path, report: Report) -> Spool:
    """Write the documents of ``source`` to ``path``, and their names beside it; empty ones are left out and counted.

    DataError when there is none, or when one cannot be written as UTF-8 or names an unknown split.
    """
    ends: list[int] = []
    name_ends: list[int] = []
    names = path.with_name(f"{path.name}.names")
    fixed: list[str | None] = []
    empty, first = 0, ""
    with path.open("wb") as file, names.open("wb") as named:
        for document in source.documents():
            if document.split not in (None, "train", "validation", "test"):
                raise DataError(
                    f"document {document.name} belongs to split {document.split!r}: the source may say 'train', "
                    "'validation', 'test' or None"
                )
            try:
                data = document.text.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"document {document.name} is not valid Unicode ({error.reason} at character {error.start}): "
                    "repair the text or leave the document out"
                ) from error
            if not data:
                empty += 1
                first = first or document.name
                continue
            file.write(data)
            ends.append(file.tell())
            named.write(json.dumps({"name": str(document.name), "source": document.source}).encode())
            name_ends.append(named.tell())
            fixed.append(document.split)
            if len(ends) % REPORT_EVERY == 0:
                report("reading documents", len(ends), None)
    if not ends:
        raise DataError(
            "the source has no document - check [data]" if not empty else
            f"the source has no text: its {empty:,} document{'s are' if empty > 1 else ' is'} empty, or without a "
            f"value in the column, the first of them {first} - check [data]"
        )
    report("reading documents", len(ends), len(ends))
    left_out = (
        f"{empty:,} of {empty + len(ends):,} documents have no text (empty, or without a value in the column) and were "
        f"left out, the first of them {first}",
    )
    return Spool(path, ends, fixed, names, name_ends, left_out if empty else ())


def divide(
    documents: Spool, *, validation: float, test: float, seed: int, groups: np.ndarray | None = None,
    units: Collection[str] = (),
) -> tuple[Mapping[str, Sequence[int]], tuple[str, ...]]:
    """Indices of the documents of each split, in a seeded shuffled order, and what a person should know about it.

    ``validation`` and ``test`` are shares of the shuffled documents. A split that the source fixes stays as it is.
    groups: (documents,) int64, the group of each document; a group goes into one split as a whole, so that a held-out
    split may become smaller than its share, and a group larger than that is trained on. Without groups every document
    is one. The canary, on which a run judges whether it has been damaged, comes out of validation: one document or
    more, up to a quarter of them or a megabyte; it depends on neither tokenizer nor sequence length, so runs stay
    comparable.

    units: what the source was told that a document is, for what it says: DataError when there are too few documents.
    """
    groups = np.arange(len(documents)) if groups is None else groups
    order = permute(np.arange(len(documents)), len(documents), seed=seed, epoch=0).tolist()
    splits: dict[str, list[int]] = {name: [i for i in order if documents.fixed[i] == name] for name in SPLITS}
    pool = [i for i in order if documents.fixed[i] is None]
    shares = {"test": (test, 1), "validation": (validation, 2)}
    missing = {name: share for name, share in shares.items() if not splits[name]}
    if missing and not pool:
        pool, splits["train"] = splits["train"], []
    whole = len(pool)
    notices = []
    for name, (share, least) in missing.items():
        count = max(least, round(share * whole))
        splits[name], notice = _held_out(pool, count, least, groups, name)
        notices += notice
        taken = set(splits[name])
        pool = [i for i in pool if i not in taken]
    splits["train"] += pool
    most = max(1, len(splits["validation"]) // 4)
    size = 0
    while len(splits["canary"]) < most and size < CANARY_BYTES:
        if len(splits["validation"]) < 2:
            break
        chosen = splits["validation"].pop(0)
        splits["canary"].append(chosen)
        size += documents.num_bytes(chosen)
    if not all(splits.values()):
        raise DataError(_too_few(documents, splits, units))
    for name in missing:
        notices += _one_sided(documents, splits, groups, name)
    return splits, tuple(notices)


def _one_sided(
    documents: Spool, splits: Mapping[str, Sequence[int]], groups: np.ndarray, name: str
) -> tuple[str, ...]:
    """What to say where a group of several documents, none of them trained on, has ``ONE_SIDED`` of a split's bytes."""
    some, share = largest_group(documents, splits[name], groups)
    if len(some) < 2 or share < ONE_SIDED or groups[some[0]] in groups[list(splits["train"])]:
        return ()
    first = documents.described(min(some))["name"]
    return (
        f"{len(some)} of the {len(splits[name])} documents of the {name} text, {share:.0%} of its bytes, share text "
        f"with each other and none of their kind is trained on (the first is {first}): another data.split_seed "
        "divides otherwise",
    )


def largest_group(documents: Spool, split: Sequence[int], groups: np.ndarray) -> tuple[list[int], float]:
    """The documents of the group that has most bytes of a split, and its share of them; see ``divide``."""
    members: dict[int, list[int]] = {}
    for index in split:
        members.setdefault(int(groups[index]), []).append(index)
    sizes = {group: sum(map(documents.num_bytes, some)) for group, some in members.items()}
    largest = max(sizes, key=sizes.__getitem__)
    return members[largest], sizes[largest] / sum(sizes.values())


def _held_out(
    pool: Sequence[int], count: int, least: int, groups: np.ndarray, name: str
) -> tuple[list[int], tuple[str, ...]]:
    """The first ``count`` documents of the pool whose groups fit in whole; where those are fewer than ``least``, the
    first ones whatever their group."""
    members: dict[int, list[int]] = {}
    for index in pool:
        members.setdefault(int(groups[index]), []).append(index)
    taken: list[int] = []
    left = set(pool)
    for some in members.values():
        if len(some) <= count - len(taken):
            taken += some
            left.difference_update(some)
    if len(taken) < min(least, len(pool)):
        return list(pool[:count]), (
            f"{name} text shares much with training text: nearly all documents are so alike that they could not be "
            "kept in one split",
        )
    assert not {int(groups[i]) for i in taken} & {int(groups[i]) for i in left}, "a group is in two splits"
    if len(taken) < count:
        return taken, (
            f"{name} text has {len(taken)} documents instead of {count}: the others are so alike that they stay "
            "together in training text",
        )
    return taken, ()


ROWS = "A row of a table is one document and is not cut"

FURTHER = {
    "file": (
        f'Give more files, or cut a long text into documents with data.documents = "paragraph" or "line". {ROWS}'
    ),
    "paragraph": (
        'data.documents is "paragraph" already, and the text has no more empty lines: give more files, or '
        f'data.documents = "line". {ROWS}'
    ),
    "line": f'data.documents is "line" already, and the text has no more lines: give more files. {ROWS}',
    "article": 'data.documents is "article", and the rows have no more headings: give more rows, or "row"',
}
"""What a document is → how to have more of them; the first of what a source was told."""


def _too_few(documents: Spool, splits: Mapping[str, Sequence[int]], units: Collection[str]) -> str:
    whole = len(documents)
    given = {name: documents.fixed.count(name) for name in SPLITS if name in documents.fixed}
    if whole < 4 or not given:
        further = next((advice for unit, advice in FURTHER.items() if unit in units), "Give more documents")
        return (
            f"the source has {whole} document{'s' * (whole != 1)}, too few to divide into train, validation "
            f"(two or more) and test: at least 4 are needed. {further}"
        )
    said = ", ".join(f"{count} in {name}" for name, count in given.items())
    names = {"canary": "validation (two or more)"}
    empty = next(names.get(name, name) for name, some in splits.items() if not some)
    return (
        f"the source puts its {whole} documents into splits itself ({said}), which leaves too few for {empty}: give "
        "more documents there, or leave the division to the recipe's shares (data.split of the source hub)"
    )
