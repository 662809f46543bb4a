"""From a source of text to encoded splits: divided by document before anything learns from it, encoded once, cached."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import filelock
import numpy as np

from muse_core.component import Use, walk
from muse_core.contracts import Source
from muse_core.data import overlap, token_files, tokenizers
from muse_core.data.documents import REPORT_EVERY, SPLITS, Report, Spool, divide, spool
from muse_core.data.kept import Kept
from muse_core.data.options import OfRunOptions
from muse_core.data.sources import cache_folder, open_source
from muse_core.data.tasks import TaskCorpus, open_task
from muse_core.data.token_files import Split
from muse_core.data.tokenizers import Tokenizer
from muse_core.errors import DataError
from muse_core.recipe.schema import Data
from muse_core.storage.disk import ADVICE

if TYPE_CHECKING:
    from muse_core.contracts import Batch
    from muse_core.data.batches import TrainingData


@attrs.frozen(eq=False, kw_only=True)
class Corpus:
    """Encoded text, ready to train on."""

    tokenizer: Tokenizer
    digest: str
    """Identifies the encoded text: source, division, seed of the division and tokenizer."""
    splits: Mapping[str, Split]
    in_training: Mapping[str, float]
    """Part of the bytes of ``"validation"`` (with the canary) and ``"test"`` that stand verbatim in training text, in
    strings of 64 bytes or as documents of fewer; see ``overlap.shared_bytes``."""
    notices: tuple[str, ...] = ()
    """What a person should know about this corpus: documents without text, a damaged cache that was made anew."""
    described: Mapping[str, Sequence[Mapping[str, Any]] | None] = {}
    """``name`` and ``source`` of each document of the held-out splits, in the order of their numbers; None where an
    earlier version encoded the text."""
    is_text: ClassVar[bool] = True
    """Windows may have any length, and tokens may be counted."""
    chance: ClassVar[float | None] = None
    """See ``TaskCorpus``."""

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

    def training_data(self, **how: Any) -> TrainingData:
        """The training split in batches; see ``TextData``."""
        from muse_core.data.batches import TextData

        return TextData(self, **how)

    def held_out(self, split: str, **how: Any) -> Iterator[Batch]:
        """A split in batches; see ``evaluation_batches``."""
        from muse_core.data.batches import evaluation_batches

        return evaluation_batches(self.split(split), **how)

    def held_out_documents(
        self, split: str, *, sequence_length: int, max_tokens: int, span: int | None = None
    ) -> np.ndarray:
        """(rows, N) int32: number of the document of each token of ``held_out``. Tokens of one document are not
        independent."""
        from muse_core.data.batches import documents_of, evaluation_starts

        text = self.split(split)
        starts = evaluation_starts(text, sequence_length=sequence_length, max_tokens=max_tokens, span=span)
        return documents_of(text, starts, sequence_length)


def open_corpus(
    data: Data, *, seed: int, report: Report | None = None, kept: Kept | None = None, exact: bool = False
) -> Corpus | TaskCorpus:
    """The corpus of a checked recipe's ``[data]``, from its source and in its cache; see :func:`prepare_corpus`. A
    source that is a task is taken as it is."""
    cache = cache_folder(data.cache)
    source = open_source(data.source, cache)
    if hasattr(source, "examples"):
        task = open_task(source, data)
        if exact and kept is not None and task.digest != kept.data_digest:
            raise _another(kept)
        return task
    return prepare_corpus(data, source, seed=seed, cache=cache, report=report, kept=kept, exact=exact)


def _another(kept: Kept) -> DataError:
    return DataError(
        f"data: the text that [data] of {kept.folder} names is not what the run was trained on (digests.data of its "
        "lock): numbers from it could not be compared - bring the text back as it was, or name a text yourself where "
        "the command takes one (--text)"
    )


class KeptCorpus:
    """The corpus of a run of which the tokenizer is at hand. The text is opened when it is asked for: DataError when
    it is not the one that the run's lock names."""

    def __init__(self, data: Data, kept: Kept):
        self.tokenizer = kept.tokenizer
        self.digest = kept.data_digest
        self.notices: tuple[str, ...] = ()
        self._data = data
        self._kept = kept

    @property
    def vocabulary_size(self) -> int:
        return self.tokenizer.vocabulary_size

    @property
    def in_training(self) -> Mapping[str, float]:
        """See ``Corpus``; as the run's lock has it."""
        return dict(self._kept.lock.table.get("held_out_in_training", {}))

    @property
    def byte_lengths(self) -> np.ndarray:
        """(vocabulary_size,) int64; see ``Corpus``."""
        return self.text.byte_lengths

    @property
    def extent(self) -> str:
        """How much there is, for people."""
        return self.text.extent

    def split(self, name: str) -> Split:
        """See ``Corpus``."""
        return self.text.split(name)

    @property
    def is_text(self) -> bool:
        """See ``Corpus``."""
        return self.text.is_text

    @property
    def chance(self) -> float | None:
        """See ``TaskCorpus``."""
        return self.text.chance

    def training_data(self, **how: Any) -> TrainingData:
        """See ``Corpus``."""
        return self.text.training_data(**how)

    def held_out(self, split: str, **how: Any) -> Iterator[Batch]:
        """See ``Corpus``."""
        return self.text.held_out(split, **how)

    def held_out_documents(self, split: str, **how: Any) -> np.ndarray:
        """See ``Corpus``."""
        return self.text.held_out_documents(split, **how)

    @property
    def described(self) -> Mapping[str, Sequence[Mapping[str, Any]] | None]:
        """See ``Corpus``."""
        return self.text.described

    @functools.cached_property
    def text(self) -> Corpus | TaskCorpus:
        """The text itself, encoded by the run's tokenizer."""
        return open_corpus(self._data, seed=self._data.split_seed, kept=self._kept, exact=True)


def prepare_corpus(
    data: Data,
    source: Source,
    *,
    seed: int,
    cache: Path,
    report: Report | None = None,
    kept: Kept | None = None,
    exact: bool = False,
) -> Corpus:
    """Encode the text of ``source``, or open what an earlier call encoded.

    seed decides which documents are held out; those that share much text go into one split unless
    ``data.near_duplicates`` says otherwise. The encoded text stands in a folder under ``cache``, named by the
    digest of everything it depends on; concurrent calls wait for the one that writes. Opening compares every file
    with its hash; a damaged folder is made anew, with a notice. A cache that cannot be written is read.

    kept: of a run whose text this is. Its tokenizer encodes, whatever tokenizer the text would give today. exact:
    DataError, before anything is encoded, when it is not the text that the run's lock names.

    DataError: unusable source, too few documents, text that changes while it is read, a cache that cannot be written.
    """
    fingerprint = source.fingerprint()

    def digest_with(tokenizer: str) -> str:
        identity = {
            "format": token_files.FORMAT,
            "source": fingerprint,
            "validation": data.validation,
            "test": data.test,
            "seed": seed,
            "near_duplicates": data.near_duplicates,
            "tokenizer": tokenizer,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    if kept is None:
        return _in_cache(data, source, seed, cache, digest_with(tokenizers.identity(data.tokenizer)), report, None,
                         fingerprint)
    by_run = tokenizers.given(kept.tokenizer)
    by_recipe = by_run if isinstance(data.tokenizer.options, OfRunOptions) else tokenizers.identity(data.tokenizer)
    own = digest_with(by_recipe)
    if exact and own != kept.data_digest:
        raise _another(kept)
    if own == kept.data_digest:
        there = _readable(cache / "corpora" / own[:32], own, data.tokenizer)
        if there is not None and there.tokenizer.digest == kept.tokenizer.digest:
            return there
    # In a folder of its own: what the text would give today is another tokenizer, or not known without training it.
    found = _in_cache(data, source, seed, cache, digest_with(by_run), report, kept.tokenizer, fingerprint)
    return attrs.evolve(found, digest=own) if own == kept.data_digest else found


def _readable(folder: Path, digest: str, chosen: Use) -> Corpus | None:
    """What a folder of the cache holds, or None when it holds nothing usable."""
    try:
        return _open(folder, digest, chosen) if folder.exists() else None
    except token_files.Unusable:
        return None


def _in_cache(
    data: Data, source: Source, seed: int, cache: Path, digest: str, report: Report | None,
    tokenizer: Tokenizer | None, fingerprint: str,
) -> Corpus:
    """The corpus of this digest, opened or made. ``tokenizer``: what encodes, where it is not made from the text."""
    corpora = cache / "corpora"
    folder = corpora / digest[:32]
    if (there := _readable(folder, digest, data.tokenizer)) is not None:
        return there  # needs no lock, since a folder appears whole, and no right to write
    notices: tuple[str, ...] = ()
    try:
        corpora.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(corpora / f"{digest[:32]}.lock"):
            if folder.exists():
                try:
                    return _open(folder, digest, data.tokenizer)
                except token_files.Unusable as error:
                    notices = (f"the encoded text in {folder} could not be used, so it was made anew: {error}",)
            _encode(data, source, seed, fingerprint, folder, digest, report or _silent, tokenizer)
            try:
                corpus = _open(folder, digest, data.tokenizer)
                return attrs.evolve(corpus, notices=notices + corpus.notices)
            except token_files.Unusable as error:
                raise DataError(
                    f"{folder}: text just encoded reads back differently: {error}. Check the disk"
                ) from error
    except OSError as error:
        raise DataError(
            f"{corpora}: cannot keep encoded text there ({error}) - "
            f"{ADVICE.get(error.errno or 0, 'check that folder')}; or name another folder with data.cache or the "
            "environment variable MUSE_CACHE"
        ) from error


def _open(folder: Path, digest: str, chosen: Use) -> Corpus:
    """Raises Unusable for whatever is not as :func:`_encode` left it."""
    header = token_files.read_header(folder)
    try:
        if header["digest"] != digest:
            raise token_files.Unusable("it holds another corpus")
        return Corpus(
            tokenizer=tokenizers.from_json((folder / "tokenizer.json").read_text(encoding="utf-8"), chosen=chosen),
            digest=digest,
            splits={name: token_files.open_split(folder, name, header) for name in SPLITS},
            described={name: token_files.open_described(folder, name, header) for name in SPLITS if name != "train"},
            in_training={str(name): float(share) for name, share in header["in_training"].items()},
            notices=tuple(map(str, header["notices"])),
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise token_files.unreadable(error) from error


def _units(data: Data) -> list[str]:
    """What the source, or those in it, were told that a document is. A source that was made otherwise was told none."""
    sources = [] if data.source is None else [data.source, *walk(data.source.options)]
    return [unit for use in sources if isinstance(unit := getattr(use.options, "documents", None), str)]


def _encode(
    data: Data, source: Source, seed: int, fingerprint: str, folder: Path, digest: str, report: Report,
    tokenizer: Tokenizer | None,
) -> None:
    for leftover in folder.parent.glob(f"{folder.name}.tmp-*"):
        shutil.rmtree(leftover)
    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    try:
        documents = spool(source, work / "text", report)
        if source.fingerprint() != fingerprint:
            raise DataError("the text changed while it was being read: start again once nobody writes to it")
        sizes = [documents.num_bytes(index) for index in range(len(documents))]
        report("comparing documents", 0, None)
        groups = overlap.group(documents.data, sizes) if data.near_duplicates == "together" else None
        chosen, notices = divide(
            documents, validation=data.validation, test=data.test, seed=seed, groups=groups,
            units=_units(data),
        )
        held_out = {"validation": [*chosen["canary"], *chosen["validation"]], "test": chosen["test"]}
        in_training = overlap.shared_bytes(documents.data, held_out, chosen["train"])
        if tokenizer is None:
            report("making the tokenizer", 0, None)
            tokenizer = tokenizers.make_tokenizer(data.tokenizer, (documents.text(i) for i in chosen["train"]))
        files = work / "files"
        files.mkdir()
        (files / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        dtype = token_files.token_dtype(tokenizer.vocabulary_size)
        described = {}
        for name in SPLITS:
            ids = _encoded(documents, chosen[name], tokenizer, name, report)
            described[name] = token_files.write_split(files, name, ids, dtype=dtype, separator=tokenizer.separator)
            if name != "train":  # whose documents may be millions
                token_files.write_described(files, name, map(documents.described, chosen[name]))
        header = {
            "digest": digest,
            "dtype": dtype.str,
            "separator": tokenizer.separator,
            "splits": described,
            "in_training": in_training,
            "notices": [*documents.left_out, *notices],
        }
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
