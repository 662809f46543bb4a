"""What recipes can say about these sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import attrs
from attrs import field, validators

from muse_core.component import RecipePath, RecipePathOrName, UseSource

NOT_EMPTY = validators.min_len(1)
Documents = Literal["file", "paragraph", "line"]


@attrs.frozen(kw_only=True)
class StateOfTheUnionOptions:
    """The State of the Union addresses 1790-2021: 233 documents, 10.8 MB, installed with this plugin."""


@attrs.frozen(kw_only=True)
class PythonLibraryOptions:
    """The sources of the running Python's standard library without its tests; every file is a document."""

    packages: tuple[str, ...] = ()
    """Installed packages, by the names that are imported, whose sources follow, without their tests and without files
    that are no text in the encoding that they name. torch has 46 MB; which text that is depends on its version."""


@attrs.frozen(kw_only=True)
class FilesOptions:
    """Local files: .json, .jsonl, .ndjson, .parquet, .csv and .tsv by their column of text, all else as plain text,
    also compressed (.gz, .xz, .bz2, .zst); folders with all such files and .txt, .md and .rst in them; glob
    patterns."""

    paths: tuple[RecipePath, ...] = field(validator=NOT_EMPTY)
    """Files, folders and patterns, relative to the recipe. Folders and patterns leave out hidden names, directories of
    runs and what is not a file; a file that several ways lead to is read once."""
    text: str | None = None
    """Column that holds the text, or a conversation: turns with ``role`` and ``content``. Default: ``text``,
    ``content`` or the only column of strings."""
    documents: Documents = "file"
    """What a document is in plain text: a file, a paragraph (up to an empty line) or a line."""

    @staticmethod
    def examples(folder: Path) -> list[dict[str, Any]]:
        """What the conformance suite reads, since there is no default."""
        page = folder / "page.txt"
        page.write_text("One paragraph.\nOf two lines.\n\nAnother.\n", encoding="utf-8")
        return [{"paths": [str(page)], "documents": documents} for documents in ("file", "paragraph", "line")]


@attrs.frozen(kw_only=True)
class HubOptions:
    """A data set of the Hugging Face hub, or a local folder in its form or of ``save_to_disk``, streamed by
    ``datasets``. Of its splits train, validation and test are read and stay what they are."""

    name: RecipePathOrName = field(validator=NOT_EMPTY)
    """Name on the hub, as ``wikitext``, or a local folder, relative to the recipe."""
    configuration: str | None = None
    """Configuration (subset) of the data set. Default: its own default."""
    revision: str | None = None
    """Commit, tag or branch. With a full commit, text already encoded is found again without a network."""
    split: str | None = None
    """One split to read and divide by the recipe's shares. Default: the data set's own splits."""
    text: str | None = None
    """Column that holds the text, or a conversation: turns with ``role`` and ``content``. Default: ``text``,
    ``content`` or the only column of strings."""
    documents: Literal["row", "article"] = "row"
    """What a document is: a row, or the rows from one heading ``= Title =`` up to the next, a line each, as the rows of
    WikiText are."""
    limit: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    """Documents to read from each split, from its beginning. Default: all."""

    @staticmethod
    def examples(folder: Path) -> list[dict[str, Any]]:
        """What the conformance suite reads: a local folder in the hub's form, since the hub needs a network."""
        local = folder / "local-set"
        local.mkdir()
        for split in ("train", "test"):
            (local / f"{split}.jsonl").write_text('{"text": "One."}\n{"text": "Two."}\n', encoding="utf-8")
        return [{"name": str(local)}]


@attrs.frozen(kw_only=True)
class MixOptions:
    """The documents of several sources, one source after the other; training shuffles them."""

    sources: tuple[UseSource, ...] = field(validator=NOT_EMPTY)
    """The sources, each as it would stand in ``[data]``. Comparisons have figures of each, the second ``files`` under
    ``files-2``."""

    @staticmethod
    def examples(folder: Path) -> list[dict[str, Any]]:
        """What the conformance suite reads: the two sources that are always there."""
        return [{"sources": ["state-of-the-union", {"use": "python-library"}]}]
