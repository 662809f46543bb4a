"""Opening the source of text that a recipe names. Imports no torch."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

from muse_core.component import Use, load
from muse_core.contracts import Batch, Document, Source
from muse_core.errors import DataError, PluginError, RecipeError
from muse_core.model.signatures import mismatch
from muse_core.plugins.raised import asked, raised
from muse_core.storage.disk import read_file


@attrs.frozen(kw_only=True)
class SourceContext:
    """What a source learns when it is built."""

    cache: Path
    """Folder where a source may keep what it fetches."""


def cache_folder(configured: str | None = None) -> Path:
    """Where encoded text and downloads live: ``data.cache`` of the recipe, else the environment variable MUSE_CACHE,
    else ``muse`` in the user's cache folder (XDG_CACHE_HOME, by default ~/.cache)."""
    if configured:
        return expanded(configured, "data.cache")
    if chosen := os.environ.get("MUSE_CACHE"):
        return expanded(chosen, "MUSE_CACHE")
    usual = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(usual, "the folder of encoded text (name one with data.cache or MUSE_CACHE)") / "muse"


def expanded(path: str, where: str) -> Path:
    """A path with its ``~`` or ``~user`` replaced by that home directory. Raises DataError, naming ``where``, when
    there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{where}: {path!r}: there is no such home directory - write the whole path") from error


def read_tokenizer_file(path: str) -> str:
    """Content of a local tokenizer file. DataError when it cannot be read; pipes and devices are refused."""
    try:
        return read_file(Path(os.path.realpath(expanded(path, "data.tokenizer")))).decode()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read the tokenizer file ({error})") from error


def open_source(use: Use, cache: Path) -> Source:
    """Build the source that ``use`` names. PluginError when its implementation cannot be imported or built, and later
    when it raises or gives what the contract does not have."""
    source: Any = CheckedSource(use, built(use, SourceContext(cache=cache)))
    return source


def built(use: Use, context: Any) -> Any:
    """What a source or a tokenizer is built as. Raises PluginError when its implementation cannot be imported, departs
    from the contract or raises."""
    try:
        implementation = load(use.implementation)
    except Exception as error:
        raise PluginError(
            f"{use.path or 'data'}: {use.title} cannot be imported ({use.implementation}): {raised(error)}"
        ) from error
    if sentence := mismatch(use.kind, implementation):
        raise PluginError(f"{use.path or 'data'}: {use.title} does not keep the contract: {sentence}")
    return asked(use, "built", lambda: implementation(use.options, context))


class CheckedSource:
    """A source that is held to its contract: ``contracts.Source``, or ``contracts.TaskSource`` where it has
    ``examples``. Everything else of it can be reached as before."""

    def __init__(self, use: Use, source: Any):
        self._use = use
        self._source = source

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._source, name)
        return functools.partial(self._examples, value) if name == "examples" else value

    def fingerprint(self) -> str:
        """See ``contracts.Source``."""
        found = asked(self._use, "asked for its fingerprint", self._source.fingerprint)
        if not isinstance(found, str) or not found:
            raise self._departed(f"its fingerprint is {found!r} where a text is due")
        return found

    def documents(self) -> Iterator[Document]:
        """See ``contracts.Source``. Raises RecipeError for a task, as one among the sources of a mixture."""
        if hasattr(self._source, "examples") and not hasattr(self._source, "documents"):
            raise RecipeError(
                f"{self._use.path or 'data'}: {self._use.title} is a task, which makes examples and has no documents: "
                "it cannot stand among sources of text - leave it out, or give it a [data] of its own"
            )
        documents = asked(self._use, "asked for documents", lambda: iter(self._source.documents()))
        end = object()
        for number in itertools.count():
            document: Any = asked(self._use, f"reading document {number}", lambda: next(documents, end))
            if document is end:
                return
            if not isinstance(document, Document):
                raise self._departed(
                    f"document {number} is a {type(document).__name__} where contracts.Document is due"
                )
            if not isinstance(document.text, str):
                raise self._departed(f"the text of document {number} is a {type(document.text).__name__}")
            if not isinstance(document.source, str | None):
                raise self._departed(f"the source of document {number} is a {type(document.source).__name__}")
            yield document if document.source is not None else document._replace(source=self._use.name)

    def _examples(self, examples: Callable[..., Batch], split: str, indices: Any, length: int) -> Batch:
        batch = asked(self._use, f"making examples of {split!r}", lambda: examples(split, indices, length))
        if not isinstance(batch, Batch):
            raise self._departed(f"examples returned a {type(batch).__name__} where contracts.Batch is due")
        due = (len(indices), length)
        for name, value, kind in (
            ("inputs", batch.inputs, "int64"),
            ("labels", batch.labels, "int64"),
            ("loss_mask", batch.loss_mask, "bool"),
            ("tokens.positions", batch.tokens.positions, "int"),
        ):
            shape, dtype = tuple(getattr(value, "shape", ())), str(getattr(value, "dtype", type(value).__name__))
            if shape != due or not dtype.startswith(f"torch.{kind}"):
                raise self._departed(
                    f"{name} of its examples is {dtype} of shape {shape} where {kind} of shape {due} is due"
                )
        for name, ids in (("inputs", batch.inputs), ("labels", batch.labels[batch.loss_mask])):
            low, high = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
            if low < 0 or high >= self._source.vocabulary_size:
                raise self._departed(
                    f"{name} of its examples has the token {low if low < 0 else high}, outside its vocabulary of "
                    f"{self._source.vocabulary_size}"
                )
        return batch

    def _departed(self, what: str) -> PluginError:
        return PluginError(f"{self._use.title} does not keep the contract: {what}")
