"""Documents on their way from a source to token files: read once onto disk, then divided among the splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from muse_core.contracts import Source
from muse_core.data.permutation import permute
from muse_core.errors import DataError

SPLITS = ("train", "validation", "canary", "test")
CANARY_BYTES = 1 << 20
REPORT_EVERY = 256

Report = Callable[[str, int, "int | None"], None]
"""Called with what is being done, the amount done and the whole amount (None while unknown)."""


class Spool:
    """The text of every document in one file, so that a source is read once however often its text is needed."""

    def __init__(self, path: Path, ends: Sequence[int], fixed: Sequence[str | None]):
        self.fixed = fixed
        """Split that the source gave each document, or None."""
        self._ends = np.concatenate([[0], np.asarray(ends, dtype=np.int64)])
        self._text = np.memmap(path, dtype=np.uint8, mode="r") if ends else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def text(self, index: int) -> str:
        return bytes(self._text[self._ends[index] : self._ends[index + 1]]).decode()

    def num_bytes(self, index: int) -> int:
        """UTF-8 length of a document."""
        return int(self._ends[index + 1] - self._ends[index])


def spool(source: Source, path: Path, report: Report) -> Spool:
    """Write the documents of ``source`` to ``path``; empty ones are left out.

    DataError when there is none, or when one cannot be written as UTF-8 or names an unknown split.
    """
    ends: list[int] = []
    fixed: list[str | None] = []
    with path.open("wb") as file:
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
                continue
            file.write(data)
            ends.append(file.tell())
            fixed.append(document.split)
            if len(ends) % REPORT_EVERY == 0:
                report("reading documents", len(ends), None)
    if not ends:
        raise DataError("the source has no text: every document is empty, or there is none")
    report("reading documents", len(ends), len(ends))
    return Spool(path, ends, fixed)


def divide(documents: Spool, *, validation: float, test: float, seed: int) -> Mapping[str, Sequence[int]]:
    """Indices of the documents of each split, in a seeded shuffled order.

    ``validation`` and ``test`` are shares of the shuffled documents. A split that the source fixes stays as it is.
    The canary, on which a run judges whether it has been damaged, comes out of validation: one document or more, up
    to a quarter of them or a megabyte; it depends on neither tokenizer nor sequence length, so runs stay comparable.

    DataError when there are too few documents.
    """
    order = permute(np.arange(len(documents)), len(documents), seed=seed, epoch=0).tolist()
    splits: dict[str, list[int]] = {name: [i for i in order if documents.fixed[i] == name] for name in SPLITS}
    pool = [i for i in order if documents.fixed[i] is None]
    shares = {"test": (test, 1), "validation": (validation, 2)}
    missing = {name: share for name, share in shares.items() if not splits[name]}
    if missing and not pool:
        pool, splits["train"] = splits["train"], []
    whole = len(pool)
    for name, (share, least) in missing.items():
        count = max(least, round(share * whole))
        splits[name], pool = pool[:count], pool[count:]
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
        raise DataError(
            f"the source has {len(documents)} document{'s' * (len(documents) != 1)}, too few to divide into train, "
            "validation (two or more) and test: at least 4 are needed. Give more files, or cut a long text into "
            'documents with data.documents = "paragraph" or "line" where the source has that option'
        )
    return splits
