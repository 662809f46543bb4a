"""Data sets of the Hugging Face hub as documents."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from muse_core.contracts import Document
from muse_core.data.sources import SourceContext, expanded
from muse_core.errors import DataError
from muse_text_sources.articles import articles
from muse_text_sources.finding import TABLES, TEXTS, everything, saved, suffix
from muse_text_sources.options import HubOptions
from muse_text_sources.reading import read_file
from muse_text_sources.rows import Column, library, read_errors

SPLIT_OF = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
COMMIT = re.compile(r"[0-9a-f]{40}")
SECONDS = 10.0
UNIT = {"document": "file", "paragraph": "paragraph", "line": "line"}
"""What ``datasets`` calls a document in plain text, in the words of the source ``files``."""


class Hub:
    """The rows of a data set, split by split, in their order. Rows are streamed; nothing of them is kept."""

    def __init__(self, options: HubOptions, context: SourceContext) -> None:
        self._options = options
        self._cache = context.cache
        self._local = expanded(options.name, "data.name").is_dir()

    def fingerprint(self) -> str:
        o = self._options
        pinned = not self._local and o.revision and COMMIT.fullmatch(o.revision)
        revision = o.revision if pinned else self._revision()
        articles = "/article" if o.documents == "article" else ""  # text encoded before there was a choice is found
        name = "" if self._local else o.name
        return f"hub/{name}/{o.configuration}/{revision}/{o.split}/{o.text}/{o.limit}{articles}"

    def documents(self) -> Iterator[Document]:
        o = self._options
        revision = None if self._local else self._revision()
        with library(self._cache) as (datasets, folder):
            where = o.name
            try:
                splits = self._open(datasets, revision, folder)
                for split, target in self._chosen(splits).items():
                    column = Column(o.text)
                    rows = self._rows(column, splits[split], split)
                    found = articles(rows) if o.documents == "article" else rows
                    for where, text in itertools.islice(found, o.limit):
                        yield Document(text=text, name=where, split=target)
                    column.close(f"{o.name}, {split}")
            except read_errors() as error:
                raise DataError(f"{where}: datasets cannot read it: {type(error).__name__}: {error}") from error

    def _rows(self, column: Column, rows: Iterable[Mapping[str, Any]], split: str) -> Iterator[tuple[str, str]]:
        """Name and text of each row."""
        for number, values in enumerate(rows):
            where = f"{self._options.name}, {split} row {number}"
            yield where, column.text(values, where)

    def _open(self, datasets: Any, revision: str | None, folder: str) -> Mapping[str, Iterable[Mapping[str, Any]]]:
        """Split to its rows. ``datasets`` says which files of a local folder are which split; those of the forms that
        the source ``files`` knows are read as there, column by column, whatever the types of the other columns."""
        o = self._options
        name = str(expanded(o.name, "data.name")) if self._local else o.name
        if not self._local:
            return dict(datasets.load_dataset(
                name, o.configuration, revision=revision, streaming=True, cache_dir=folder
            ))
        if saved(Path(name)):
            return self._saved(datasets, name)
        config = datasets.load_dataset_builder(name, o.configuration, cache_dir=folder).config
        if not _as_files(config):
            return dict(datasets.load_dataset(name, o.configuration, streaming=True, cache_dir=folder))
        documents = UNIT.get(getattr(config, "sample_by", ""), "line")
        return {
            str(split): _Rows([Path(file) for file in files], o.text, documents)
            for split, files in config.data_files.items()
        }

    def _saved(self, datasets: Any, name: str) -> Mapping[str, Iterable[Mapping[str, Any]]]:
        """What ``save_to_disk`` wrote: the rows that it names, not every file there. A set alone is training text."""
        if self._options.configuration is not None:
            raise DataError(f"{name}: save_to_disk wrote it without configurations - leave out data.configuration")
        opened = datasets.load_from_disk(name)
        splits = dict(opened) if isinstance(opened, datasets.DatasetDict) else {"train": opened}
        wanted = self._options.text
        return {
            str(split): rows.select_columns([wanted]) if wanted in rows.column_names else rows
            for split, rows in splits.items()
        }

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
            return _content(expanded(self._options.name, "data.name"))
        if self._options.name.startswith(("/", "./", "../", "~")) or self._options.name in (".", ".."):
            raise DataError(
                f"data.name: {self._options.name!r}: there is no such folder - write where it is, from the recipe's "
                "folder on, or the name of a data set on the hub"
            )
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


@attrs.frozen
class _Rows:
    """The rows of one split of a local folder, with the text alone, under the name that ``Column`` looks for."""

    paths: Sequence[Path]
    text: str | None
    documents: str

    def __iter__(self) -> Iterator[Mapping[str, str]]:
        for path in self.paths:
            for _, text in read_file(path, wanted=self.text, documents=self.documents):
                yield {self.text or "text": text}


def _as_files(config: Any) -> bool:
    """Whether the source ``files`` reads what a data set's configuration describes: known forms, nothing special."""
    files = [Path(file) for some in (config.data_files or {}).values() for file in some]
    separator = getattr(config, "sep", None)
    return getattr(config, "field", None) is None and bool(files) and all(
        suffix(path) in TABLES or (suffix(path) in TEXTS and hasattr(config, "sample_by")) for path in files
    ) and (separator is None or all(separator == ("\t" if suffix(path) == ".tsv" else ",") for path in files))


def _content(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in everything(folder):
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\0".encode())
    return digest.hexdigest()
