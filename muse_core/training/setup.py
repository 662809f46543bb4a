"""From a checked recipe to everything a run needs: device, text, model, kernels, monitors."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import nn

from muse_core.building import build_model, construct, every_backend
from muse_core.component import Use, walk
from muse_core.contracts import Batch
from muse_core.data.batches import TrainingData, micro_batches, rows, to_device
from muse_core.data.corpus import Corpus, KeptCorpus, open_corpus
from muse_core.data.documents import Report
from muse_core.data.kept import Kept
from muse_core.data.tasks import TaskCorpus
from muse_core.errors import Halted, PluginError, RecipeError, typed
from muse_core.evaluation.calling import failing_call
from muse_core.evaluation.carried_state import state_faults
from muse_core.evaluation.causality import TOLERANCES, Leak, document_tokens, exact_leak, own_precision_leak
from muse_core.evaluation.causality_gradients import gradient_leak
from muse_core.evaluation.causality_trained import trained_leak
from muse_core.evaluation.held_out import HeldOut, held_out, undisturbed
from muse_core.evaluation.not_finite import NotFinite
from muse_core.model.kernels import BoundKernels
from muse_core.model.plan import periods
from muse_core.model.precision import Precision, choose_device, choose_precision
from muse_core.model.products import limited_gpu, repeatable_products, require_products
from muse_core.out_of_memory import told
from muse_core.parallel.one import ONE, Ranks
from muse_core.plugins.raised import asked, failure
from muse_core.recipe.schema import Recipe
from muse_core.training.monitor_context import MonitorContext
from muse_core.training.shards import Divider, embeds, gathered

LONGEST_OWN_CHECK = 512
"""Tokens that the gate's check in the run's own precision reads at most."""


def memory_errors(checkpoints: Path | None = None) -> contextlib.AbstractContextManager[None]:
    """Says as OutOfMemory that the memory ran out while something of the recipe's size was made or trained.

    ``checkpoints``: folder of a run that has begun; when something is kept there the sentence says how to go on.
    """

    def sentence(what: str) -> str:
        advice = "lower its sizes, train.micro_batch or train.sequence_length"
        if checkpoints is not None and any(checkpoints.glob("gen-*")):
            advice += f" in a new run, or make room and go on with: muse-run --resume {typed(checkpoints.parent)}"
        return f"model: does not fit into the memory ({what}) - {advice}"

    return told(sentence)


@attrs.frozen(kw_only=True)
class Setup:
    """What a recipe has become."""

    recipe: Recipe
    registry: Any
    precision: Precision
    corpus: Corpus | TaskCorpus | KeptCorpus
    model: nn.Module
    kernels: BoundKernels
    ranks: Ranks = ONE
    """The processes of the run."""

    @property
    def periods(self) -> tuple[int, ...]:
        return periods(self.recipe.model.options)

    @property
    def stream_period(self) -> int:
        """Least common multiple of the periods."""
        return math.lcm(*self.periods) if self.periods else 1

    def training_data(self) -> TrainingData:
        """What a stage without batches of its own trains on."""
        train, data = self.recipe.train, self.recipe.data
        return self.corpus.training_data(
            seed=self.recipe.seed,
            batch_size=train.batch_size,
            sequence_length=train.sequence_length,
            order=data.order,
            reset_at_documents=data.reset_at_documents,
        )

    def held_out_batches(
        self, split: str, length: int, *, rows: int, tokens: int, span: int | None = None
    ) -> Iterator[Batch]:
        """Batches of at most ``rows`` sequences over the first ``tokens`` tokens of a split; see
        ``evaluation_batches``."""
        return self.corpus.held_out(
            split,
            sequence_length=length,
            batch_size=rows,
            max_tokens=tokens,
            span=span,
            reset_at_documents=self.recipe.data.reset_at_documents,
        )

    def held_out_documents(self, split: str, length: int, *, tokens: int, span: int | None = None) -> np.ndarray:
        """(rows, N) int32: number of the document of each token of ``held_out_batches``. Tokens of one document are not
        independent; the examples of a task are, and each counts as a document."""
        return self.corpus.held_out_documents(split, sequence_length=length, max_tokens=tokens, span=span)

    def evaluate(
        self, split: str, tokens: int, *, multiple: int = 1, interrupted: Callable[[], bool] = lambda: False
    ) -> HeldOut | None:
        """Held-out measures on the first ``tokens`` tokens of a split, at ``multiple`` × the training length."""
        length, span = self._lengths(multiple)
        batches = self._held_out(split, tokens, multiple)
        documents = self.held_out_documents(split, length, tokens=tokens, span=span)
        return held_out(
            self.model, batches, self.corpus.byte_lengths, self.precision, documents=documents, interrupted=interrupted,
            ranks=self.ranks,
        )

    def _lengths(self, multiple: int) -> tuple[int, int]:
        """Tokens of a row of ``multiple`` training lengths, and those that every length's first rows share."""
        length = self.recipe.train.sequence_length
        return length * multiple, length * max(self.recipe.evaluate.lengths)

    def _held_out(self, split: str, tokens: int, multiple: int, most_rows: int | None = None) -> Iterator[Batch]:
        """The batches in which a split is read, of fewer rows the longer they are."""
        train = self.recipe.train
        length, span = self._lengths(multiple)
        count = max(1, (train.micro_batch or train.batch_size) // multiple)
        count = count if most_rows is None else min(count, most_rows)
        return self.held_out_batches(split, length, rows=count, tokens=tokens, span=span)

    def canary(self, sequences: int) -> Iterator[Batch]:
        """Batches of up to ``sequences`` sequences of the text on which monitors judge."""
        train = self.recipe.train
        return self.corpus.held_out(
            "canary",
            sequence_length=train.sequence_length,
            batch_size=train.micro_batch or train.batch_size,
            max_tokens=sequences * train.sequence_length,
            reset_at_documents=self.recipe.data.reset_at_documents,
        )

    def monitor_context(self, name: str) -> MonitorContext:
        """What a monitor of this name learns about the run."""
        return MonitorContext(
            name=name,
            seed=self.recipe.seed,
            sequence_length=self.recipe.train.sequence_length,
            batch_size=self.recipe.train.batch_size,
            tokenizer=self.corpus.tokenizer,
            validation=lambda: self.corpus.split("validation").tokens,
            canary=self.canary,
            warmup_steps=self.recipe.train.warmup_steps,
            checkpoint_every=self.recipe.checkpoint.every,
            kernels=self.kernels,
        )

    def monitors(self) -> list[tuple[Use, Any]]:
        """The recipe's monitors, built. Raises RecipeError where one finds nothing in the model that it could watch."""
        built = [(use, construct(use, self.monitor_context(use.name))) for use in self.recipe.monitors]
        for use, monitor in built:
            if hasattr(monitor, "check_model"):
                check = functools.partial(monitor.check_model, self.model)
                asked(use, "asked whether there is something to watch", check)
        return built

    @property
    def exact_check(self) -> tuple[torch.device, torch.dtype]:
        """Where and in which precision the causality gate's exact check runs: float64 on the CPU, or the run's own
        device and the widest precision of a component that has no other (``device_only``, ``widest_precision``)."""
        return exact_check(self.recipe.model, self.precision.device)

    def causality_gate(self, warn: Callable[[str], None] = lambda sentence: None) -> str:
        """Every check of the gate; returns a sentence on how it was checked, and ``warn`` hears of a layer that forgets
        what it has read, or reads across documents. Raises Halted naming what leaks or is not finite. A collective
        where weights are divided: rank 0 makes the exact check, on the host, and all make the others."""
        leak = self._exact_leak(warn)
        if leak is None:
            batch = self.first_batch()
            leak = self._own_leak(batch) or self._gradient_leak(batch)
        if leak is not None:
            raise Halted(f"{leak}. {leak.consequence}; nothing was trained.{limited_gpu(self.precision.device)}")
        device, dtype = self.exact_check
        passed = "causality gate: no output depends on a later token or on another row"
        if (device.type, dtype) == ("cpu", torch.float64):
            return passed
        name = str(dtype).removeprefix("torch.")
        return f"{passed}; checked on {device} in {name}, where changes under {TOLERANCES[dtype]:g} go unseen"

    def causality_checks(self, batch: Batch) -> tuple[Callable[[], Leak | NotFinite | None], ...]:
        """The gate's three checks, to be asked one by one: by values in the exact check's precision, by values in the
        run's own on ``batch``, and by gradients on it."""
        return self._exact_leak, lambda: self._own_leak(batch), lambda: self._gradient_leak(batch)

    def held_out_leak(self, split: str) -> tuple[Leak | NotFinite | None, list[int]]:
        """The gate's check by values in the run's own precision with the weights of now, on the rows of a split that
        are scored first, of every length that is reported; and the lengths, in tokens, that were judged: none where
        outputs are no finite numbers. A collective where weights are divided."""

        def scored_first() -> Iterator[Batch]:
            for multiple in self.recipe.evaluate.lengths:
                batches = self._held_out(split, self.recipe.evaluate.final_tokens, multiple, most_rows=2)
                for batch in itertools.islice(batches, 1):  # to read nothing is another error
                    yield to_device(batch, self.precision.device)

        return trained_leak(
            self.model, self.corpus.vocabulary_size, scored_first(), self.precision, routed=self._routed,
            agreed=self._agreed,
        )

    def first_batch(self) -> Batch:
        """The rows of the first micro-batch that the run trains on, at least two where there are so many, on its
        device."""
        train = self.recipe.train
        batch = self.training_data().batch(0)
        rows = min(len(batch.inputs), max(2, train.micro_batch or train.batch_size))
        piece = to_device(next(iter(micro_batches(batch, rows))), self.precision.device)
        return piece._replace(tokens=piece.tokens._replace(offset=piece.tokens.offset % self.stream_period))

    def _exact_leak(self, warn: Callable[[str], None] | None = None) -> Leak | NotFinite | None:
        """``warn`` hears of what is forgotten, or read across documents, where nothing leaks.

        Raises PluginError or RecipeError, naming the check, when a component computes in the run's own precision but
        not where the check runs, and naming the call where it raises in both; what it raises on the first batch is
        raised as it is."""
        device, dtype = self.exact_check
        name = str(dtype).removeprefix("torch.")
        try:
            return self._leak_of_copy(device, dtype, warn)
        except Exception as error:
            sentence = str(error) if isinstance(error, PluginError | RecipeError) else failure(error)
            if sentence is None:
                raise
            with undisturbed(self.model), self.precision():
                batch = self.first_batch()
                self.model(batch.inputs, None, batch.tokens)
            kind = RecipeError if isinstance(error, RecipeError) else PluginError
            failed = failing_call(self.model, self.corpus.vocabulary_size, self.periods, self.precision)
            if failed is not None:
                how, own = failed
                said = str(own) if isinstance(own, PluginError | RecipeError) else failure(own)
                if said is None:
                    raise own from error
                raise kind(f"causality gate: {said} - it was called {how}, in the run's own precision too") from own
            raise kind(
                f"causality gate, exact check in {name} on {device}: {sentence} - in the run's own precision the same "
                "calls work: a component without that form says so in its options class: device_only = "
                '"cuda", widest_precision = "float32" or "bfloat16"'
            ) from error

    def _leak_of_copy(
        self, device: torch.device, dtype: torch.dtype, warn: Callable[[str], None] | None
    ) -> Leak | NotFinite | None:
        backends = every_backend(self.recipe, self.registry)
        weights = gathered(self.model, self.ranks.rank == 0)
        if self.ranks.rank:
            return None
        copy: Any
        copy, _ = build_model(
            self.recipe,
            self.registry,
            vocabulary_size=self.corpus.vocabulary_size,
            device=device,
            dtype=str(dtype).removeprefix("torch."),
            backends=backends,
        )
        copy.load_state_dict(weights)
        width = copy.embed(torch.zeros(1, 1, dtype=torch.long, device=device)).shape[-1]
        leak = exact_leak(copy.to(dtype), width, self.periods, dtype=dtype)
        if leak is None and warn is not None and dtype == torch.float64:  # rounding is too near in less
            documents = self.recipe.data.reset_at_documents and not isinstance(self.corpus, TaskCorpus)
            for fault in state_faults(copy, width, self.periods, documents=documents):  # weights are those woken above
                warn(str(fault))
        return leak

    @property
    def _routed(self) -> bool:
        """Whether tokens decide by what they are computed."""
        return any(use.kind == "router" for use in walk(self.recipe.model.options))

    def _agreed(self, found: bool) -> bool:
        """Whether any process found it. A collective where weights are divided: each pass gathers them."""
        return any(self.ranks.gather(found)) if self.ranks.shards > 1 else found

    def _own_leak(self, batch: Batch) -> Leak | NotFinite | None:
        """In the run's own precision: random ids in one document, and the first batch, as held-out text is read, as the
        loop calls it, and from carried state; the last in training too where the loop carries one."""
        length = min(self.recipe.train.sequence_length, LONGEST_OWN_CHECK)
        two, inside = self._two_rows(batch, length)
        tokens = two.tokens
        vocabulary = self.corpus.vocabulary_size
        real = {"ids": two.inputs, "tokens": tokens}
        read = real if inside else real | {"tokens": document_tokens(two.inputs, "inside")}
        behind = real | {"period": self.stream_period}
        ways: list[dict[str, Any]] = [{}, read, real | {"training": True}, behind]
        if self.recipe.data.order == "streams":
            ways.append(behind | {"training": True})
        for more in ways:
            leak = own_precision_leak(
                self.model, vocabulary, length, self.precision, routed=self._routed, agreed=self._agreed, **more
            )
            if leak is not None:
                return leak
        return None

    def _two_rows(self, batch: Batch, length: int) -> tuple[Batch, bool]:
        """Two rows of a batch, up to ``length`` tokens, one with a document start after token 0 where there is such a
        row; and whether there is."""
        resets = batch.tokens.resets
        starts = [] if resets is None else resets[:, 1:length].any(1).nonzero().flatten().tolist()
        first = min(starts[0] if starts else 0, max(0, len(batch.inputs) - 2))
        two = rows(batch, first, first + 2)
        told = two.tokens
        tokens = told._replace(
            positions=told.positions[:, :length],
            resets=None if told.resets is None else told.resets[:, :length],
            valid=None if told.valid is None else told.valid[:, :length],
        )
        return two._replace(inputs=two.inputs[:, :length], tokens=tokens), bool(starts)

    def _gradient_leak(self, batch: Batch) -> Leak | NotFinite | None:
        """On two rows of the first batch, one with a document start where there is one; where the loop carries state,
        behind themselves too."""
        two, _ = self._two_rows(batch, batch.inputs.shape[1])
        with embeds(self.model):
            leak = gradient_leak(self.model, two, self.precision)
            if leak is None and self.recipe.data.order == "streams":
                leak = gradient_leak(self.model, two, self.precision, period=self.stream_period)
            return leak


def exact_check(model: Use, device: torch.device) -> tuple[torch.device, torch.dtype]:
    """See ``Setup.exact_check``. Raises RecipeError for a component that needs another device than the run's."""
    options = [use.options for use in (model, *walk(model.options))]
    only = [one for one in options if getattr(one, "device_only", None) is not None]
    for one in only:
        if one.device_only != device.type:
            raise RecipeError(
                f"train.device: {type(one).__name__} runs on {one.device_only} only, and this run is on {device.type}"
            )
    names = [getattr(one, "widest_precision", "float64") for one in options]
    for one, name in zip(options, names):
        if getattr(torch, str(name), None) not in TOLERANCES:
            raise PluginError(
                f"{type(one).__name__}: widest_precision is {name!r}; it is float64, float32 or bfloat16"
            )
    dtype = min((getattr(torch, name) for name in names), key=lambda one: -TOLERANCES[one])
    return (device if only else torch.device("cpu")), dtype


def settle_process(recipe: Recipe) -> None:
    """What a run changes for its whole process, and the one place that does: torch's seed, and whether operations
    without a deterministic implementation are refused."""
    torch.manual_seed(recipe.seed)
    if recipe.deterministic:
        repeatable_products()
    torch.use_deterministic_algorithms(recipe.deterministic)


def set_up(
    recipe: Recipe, registry: Any, *, report: Report | None = None, kept: Kept | None = None, read: bool = True,
    ranks: Ranks = ONE, corpus: Corpus | TaskCorpus | None = None,
) -> Setup:
    """Prepare text and build the model. Changes nothing of the process, as its seed. Raises RecipeError (where matrix
    products on the GPU are wrong, too), DataError or PluginError.

    ``kept``: what a run of this recipe keeps; text is encoded by its tokenizer, and without ``read`` not opened before
    it is asked for. ``corpus``: that of the recipe's [data], where it is open already.
    """
    device = choose_device(recipe.train.device)
    precision = choose_precision(device, recipe.train.precision)
    with memory_errors():
        require_products(device, deterministic=recipe.deterministic)
    text: Corpus | TaskCorpus | KeptCorpus
    if corpus is not None:
        text = corpus
    elif kept is not None and not read:
        text = KeptCorpus(recipe.data, kept)
    else:
        # The first encodes what the others then find in the cache.
        text = ranks.first(lambda: open_corpus(recipe.data, seed=recipe.data.split_seed, report=report, kept=kept))
    with memory_errors():
        model, kernels = build_model(
            recipe, registry, vocabulary_size=text.vocabulary_size, device=device, dtype=precision.dtype,
            sequence=ranks.sequence, divider=Divider(recipe, ranks, device) if ranks.shards > 1 else None,
        )
    return Setup(
        recipe=recipe, registry=registry, precision=precision, corpus=text, model=model, kernels=kernels, ranks=ranks
    )
