"""Data sets of the Hugging Face hub as documents."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from muse_core.contracts import Document
from muse_core.data.sources import SourceContext
from muse_core.errors import DataError
from muse_text_sources.options import HubOptions
from muse_text_sources.rows import library, read_errors, text_of

SPLIT_OF = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
COMMIT = re.compile(r"[0-9a-f]{40}")
SECONDS = 10.0


class Hub:
    """The rows of a data set, split by split, in their order. Rows are streamed; nothing of them is kept."""

    def __init__(self, options: HubOptions, context: SourceContext) -> None:
        self._options = options
        self._cache = context.cache
        self._local = Path(options.name).expanduser().is_dir()

    def fingerprint(self) -> str:
        o = self._options
        pinned = not self._local and o.revision and COMMIT.fullmatch(o.revision)
        revision = o.revision if pinned else self._revision()
        return f"hub/{'' if self._local else o.name}/{o.configuration}/{revision}/{o.split}/{o.text}/{o.limit}"

    def documents(self) -> Iterator[Document]:
        o = self._options
        revision = self._revision()
        name = str(Path(o.name).expanduser()) if self._local else o.name
        with library(self._cache) as (datasets, folder):
            where = o.name
            try:
                splits = datasets.load_dataset(
                    name,
                    o.configuration,
                    revision=None if self._local else revision,
                    streaming=True,
                    cache_dir=folder,
                )
                for split, target in self._chosen(splits).items():
                    for row, values in enumerate(itertools.islice(splits[split], o.limit)):
                        where = f"{o.name}, {split} row {row}"
                        yield Document(text=text_of(values, o.text, where), name=where, split=target)
            except read_errors() as error:
                raise DataError(f"{where}: datasets cannot read it: {error}") from error

    def _chosen(self, splits: Mapping[str, Any]) -> dict[str, str | None]:
        """Splits to read and the splits of the corpus that they become; None leaves that to the recipe's shares."""
        wanted = self._options.split
        if wanted is not None:
            if wanted not in splits:
                raise DataError(f"{self._options.name}: no split {wanted!r}; there are {', '.join(splits)}")
            return {wanted: None}
        named = {split: SPLIT_OF[split] for split in splits if split in SPLIT_OF}
        if "train" not in named:
            raise DataError(
                f"{self._options.name}: no split 'train'; there are {', '.join(splits)}: choose one with data.split"
            )
        return {"train": None} if len(named) == 1 else dict(named)

    def _revision(self) -> str:
        """The commit that the data set is at; of a local folder the digest of its content."""
        if self._local:
            return _content(Path(self._options.name).expanduser())
        import huggingface_hub

        try:
            info = huggingface_hub.HfApi().dataset_info(
                self._options.name, revision=self._options.revision, timeout=SECONDS
            )
        # The library lets its HTTP client's exceptions through, which differ between its versions.
        except Exception as error:
            raise DataError(
                f"data set {self._options.name!r}: the hub does not give it ({error}). Without a network give local "
                'text: data = { use = "files", paths = ["..."] }, a downloaded folder as data.name, or '
                'data.use = "state-of-the-union"'
            ) from error
        return str(info.sha)


def _content(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\0".encode())
    return digest.hexdigest()
