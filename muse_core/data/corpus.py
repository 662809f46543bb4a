"""From a source of text to encoded splits: divided by document before anything learns from it, encoded once, cached."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import filelock
import numpy as np

from muse_core.contracts import Source
from muse_core.data import token_files, tokenizers
from muse_core.data.documents import REPORT_EVERY, SPLITS, Report, Spool, divide, spool
from muse_core.data.sources import cache_folder, open_source
from muse_core.data.tasks import TaskCorpus, open_task
from muse_core.data.token_files import Split
from muse_core.data.tokenizers import Tokenizer
from muse_core.errors import DataError
from muse_core.recipe.schema import Data


@attrs.frozen(eq=False, kw_only=True)
class Corpus:
    """Encoded text, ready to train on."""

    tokenizer: Tokenizer
    digest: str
    """Identifies the encoded text: source, division, seed of the division and tokenizer."""
    splits: Mapping[str, Split]
    notices: tuple[str, ...] = ()
    """What a person should know about how this corpus was opened, such as a damaged cache that was made anew."""

    @property
    def vocabulary_size(self) -> int:
        return self.tokenizer.vocabulary_size

    @property
    def byte_lengths(self) -> np.ndarray:
        """(vocabulary_size,) int64: bytes of text per token; see ``Tokenizer.byte_lengths``."""
        return self.tokenizer.byte_lengths

    @property
    def extent(self) -> str:
        """How much there is, for people."""
        return f"{len(self.split('train').tokens):,} training tokens"

    def split(self, name: str) -> Split:
        """``"train"``, ``"validation"``, ``"test"`` or ``"canary"``."""
        return self.splits[name]


def open_corpus(data: Data, *, seed: int, report: Report | None = None) -> Corpus | TaskCorpus:
    """The corpus of a checked recipe's ``[data]``, from its source and in its cache; see :func:`prepare_corpus`. A
    source that is a task is taken as it is."""
    cache = cache_folder(data.cache)
    source = open_source(data.source, cache)
    if hasattr(source, "examples"):
        return open_task(source, data)
    return prepare_corpus(data, source, seed=seed, cache=cache, report=report)


def prepare_corpus(data: Data, source: Source, *, seed: int, cache: Path, report: Report | None = None) -> Corpus:
    """Encode the text of ``source``, or open what an earlier call encoded.

    seed decides which documents are held out. The encoded text stands in a folder under ``cache``, named by the
    digest of everything it depends on; concurrent calls wait for the one that writes. Opening compares every file
    with its hash; a damaged folder is made anew, with a notice.

    DataError: unusable source, too few documents, a cache that cannot be written.
    """
    identity = {
        "format": token_files.FORMAT,
        "source": source.fingerprint(),
        "validation": data.validation,
        "test": data.test,
        "seed": seed,
        "tokenizer": tokenizers.identity(data.tokenizer),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    corpora = cache / "corpora"
    folder = corpora / digest[:32]
    notices: tuple[str, ...] = ()
    try:
        corpora.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(corpora / f"{digest[:32]}.lock"):
            if folder.exists():
                try:
                    return _open(folder, digest)
                except token_files.Unusable as error:
                    notices = (f"the encoded text in {folder} could not be used, so it was made anew: {error}",)
            _encode(data, source, seed, folder, digest, report or _silent)
            try:
                return attrs.evolve(_open(folder, digest), notices=notices)
            except token_files.Unusable as error:
                raise DataError(
                    f"{folder}: text just encoded reads back differently: {error}. Check the disk"
                ) from error
    except OSError as error:
        raise DataError(
            f"{corpora}: cannot keep encoded text there ({error}): free some space, or name another "
            "folder with data.cache or the environment variable MUSE_CACHE"
        ) from error


def _open(folder: Path, digest: str) -> Corpus:
    header = token_files.read_header(folder)
    if header["digest"] != digest:
        raise token_files.Unusable("it holds another corpus")
    tokenizer = tokenizers.from_json((folder / "tokenizer.json").read_text())
    splits = {name: token_files.open_split(folder, name, header) for name in SPLITS}
    return Corpus(tokenizer=tokenizer, digest=digest, splits=splits)


def _encode(data: Data, source: Source, seed: int, folder: Path, digest: str, report: Report) -> None:
    for leftover in folder.parent.glob(f"{folder.name}.tmp-*"):
        shutil.rmtree(leftover)
    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    try:
        documents = spool(source, work / "text", report)
        chosen = divide(documents, validation=data.validation, test=data.test, seed=seed)
        report("making the tokenizer", 0, None)
        tokenizer = tokenizers.make_tokenizer(data.tokenizer, (documents.text(i) for i in chosen["train"]))
        files = work / "files"
        files.mkdir()
        (files / "tokenizer.json").write_text(tokenizer.to_json())
        dtype = token_files.token_dtype(tokenizer.vocabulary_size)
        described = {}
        for name in SPLITS:
            ids = _encoded(documents, chosen[name], tokenizer, name, report)
            described[name] = token_files.write_split(files, name, ids, dtype=dtype, separator=tokenizer.separator)
        header = {"digest": digest, "dtype": dtype.str, "separator": tokenizer.separator, "splits": described}
        token_files.seal(files, folder, header)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _encoded(
    documents: Spool, indices: Sequence[int], tokenizer: Tokenizer, name: str, report: Report
) -> Iterator[tuple[np.ndarray, int]]:
    for first in range(0, len(indices), REPORT_EVERY):
        some = indices[first : first + REPORT_EVERY]
        ids = tokenizer.encode_batch([documents.text(index) for index in some])
        yield from zip(ids, map(documents.num_bytes, some))
        report(f"encoding {name}", first + len(some), len(indices))


def _silent(what: str, done: int, whole: int | None) -> None:
    pass
