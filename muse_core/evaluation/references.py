"""What a model has to be better than: counts of the training tokens in text, chance in a task.

Letters: V vocabulary, N training tokens counted, T held-out tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np

from muse_core.errors import Halted, RecipeError

MOST_COUNTED = 1 << 22
"""Training tokens that are counted, from the beginning of their shuffled documents."""
MOST_SCORED = 1 << 20
"""Held-out tokens that are scored under the counts, the first of those that the model is evaluated on."""
PIECE = 1 << 18
"""Tokens that are counted at a time, in memory that a processor's cache holds."""
WEAKEST_FIRST = ("uniform", "unigram", "bigram")
MEANING = {
    "uniform": "every token of the vocabulary alike",
    "unigram": "counts of single training tokens",
    "bigram": "counts of pairs of training tokens",
    "chance": "chance in this task",
}


def weakest_not_reached(summary: Mapping[str, Any]) -> str | None:
    """Of a summary.json: the weakest predictor that the model is not better than, a key of ``MEANING``; None where it
    is better than all, or an earlier version did not tell."""
    names = summary["not_better_than"] if "not_better_than" in summary else ()
    return names[0] if names and names[0] in MEANING else None


@attrs.frozen(kw_only=True)
class References:
    """Losses of the simplest predictors on held-out tokens, the weakest first; empty for a task that tells no chance
    level."""

    nats: Mapping[str, float]
    """``uniform``, ``unigram`` and ``bigram`` for text, ``chance`` for a task: nats per counted token."""
    bits_per_byte: Mapping[str, float]
    """The same in bits per byte, which are bits per counted token in a task."""
    counted: int
    """Training tokens that were counted."""
    scored: int
    """Held-out tokens of these figures."""

    def not_reached(self, loss: float) -> list[str]:
        """The predictors that a model with this loss (nats per token) is not better than, the weakest first."""
        return [name for name, value in self.nats.items() if not loss < value]

    def worse_than(self, loss: float) -> str:
        """Which predictor is as good as a model with this loss, for people: the weakest of ``not_reached``."""
        name = self.not_reached(loss)[0]
        return f"not better than {MEANING[name]}: {loss:.4f} nats per held-out token, and {self.nats[name]:.4f} there"

    def summary(self, loss: float) -> dict[str, Any]:
        """For summary.json."""
        table = {name: {"loss": self.nats[name], "bits_per_byte": self.bits_per_byte[name]} for name in self.nats}
        return {
            "references": table | {"training_tokens_counted": self.counted, "held_out_tokens_scored": self.scored},
            "not_better_than": self.not_reached(loss),
        }


class Counts:
    """Unigram and bigram counts of training tokens, and what they predict."""

    def __init__(self, tokens: np.ndarray, vocabulary: int):
        """``tokens`` (N,) ids below V."""
        self.vocabulary = vocabulary
        self.counted = len(tokens)
        self._single = np.zeros(vocabulary, dtype=np.int64)
        table = np.zeros(vocabulary**2 if vocabulary**2 <= self.counted else 0, dtype=np.int64)
        pieces = [np.zeros(0, dtype=np.int64)]
        for start in range(0, self.counted, PIECE):
            ids = np.asarray(tokens[start:start + PIECE + 1]).astype(np.int64)  # and the first of the next piece
            self._single += np.bincount(ids[:PIECE], minlength=vocabulary)
            keys = ids[:-1] * vocabulary + ids[1:]
            if len(table):
                table += np.bincount(keys, minlength=vocabulary**2)
            else:
                pieces.append(keys)
        if len(table):
            self._pairs = np.flatnonzero(table)
            self._pair_counts = table[self._pairs]
        else:
            self._pairs, self._pair_counts = np.unique(np.concatenate(pieces), return_counts=True)
        self._before = self._single.copy()
        self._before[tokens[-1:]] -= 1
        self._kinds = np.bincount(self._pairs // vocabulary, minlength=vocabulary)

    def nats(self, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of tokens ``after`` (T,) that follow ``before`` (T,): (T,) nats under the unigram counts with one added to
        each, and under the bigram counts with the unigram as back-off (Witten and Bell 1991, method C)."""
        single = (self._single[after] + 1) / (self.counted + self.vocabulary)
        keys = before.astype(np.int64) * self.vocabulary + after
        place = np.minimum(np.searchsorted(self._pairs, keys), max(len(self._pairs) - 1, 0))
        seen = np.zeros(len(keys))
        if len(self._pairs):
            seen = np.where(self._pairs[place] == keys, self._pair_counts[place], 0)
        kinds, whole = self._kinds[before], self._before[before]
        pair = np.where(whole > 0, (seen + kinds * single) / np.maximum(whole + kinds, 1), single)
        return -np.log(single), -np.log(pair)


class Judge:
    """Compares the held-out losses of a run with the references, and halts it where the recipe asks for that."""

    def __init__(self, setup: Any):
        """``setup``: ``training.setup.Setup``. Raises RecipeError when ``evaluate.halt_above`` asks for what a task
        does not tell."""
        self._setup = setup
        self._evaluate = setup.recipe.evaluate
        self._of: dict[tuple[str, int], References] = {}
        if self._evaluate.halt_above != "never" and not setup.corpus.is_text and setup.corpus.chance is None:
            raise RecipeError(
                f"evaluate.halt_above: the task {setup.recipe.data.source.name} tells no chance level - write "
                '"never", or give its source an attribute chance (nats per counted token)'
            )

    def references(self) -> References:
        """On the tokens of the final evaluation."""
        return self._on(self._evaluate.split, self._evaluate.final_tokens)

    def evaluated(self, step: int, loss: float) -> None:
        """After an evaluation in training. Raises Halted from ``evaluate.halt_from`` on."""
        start = self._evaluate.halt_from
        if start is not None and step >= start:
            self._halt(lambda: self._on("validation", self._evaluate.tokens), loss, f"halted at step {step}", step)

    def ended(self, loss: float) -> None:
        """After the final evaluation. Raises Halted."""
        self._halt(self.references, loss, "halted after the last step")

    def _halt(self, ask: Callable[[], References], loss: float, when: str, step: int | None = None) -> None:
        level = self._evaluate.halt_above
        if level == "never":
            return
        references = ask()
        name = level if level in references.nats else "chance"
        if name in references.not_reached(loss):
            reason = (
                f"{when}: the held-out loss, {loss:.4f} nats per token, is not below {references.nats[name]:.4f}, that "
                f"of {MEANING[name]} (evaluate.halt_above) - lower train.learning_rate, or look at the records for "
                "when it rose"
            )
            raise Halted(reason, {"reason": reason} | ({} if step is None else {"step": step}))

    @functools.cached_property
    def _counts(self) -> Counts:
        return Counts(self._setup.corpus.split("train").tokens[:MOST_COUNTED], self._setup.corpus.vocabulary_size)

    def _on(self, split: str, tokens: int) -> References:
        """On the first ``tokens`` tokens of a split, those of an evaluation."""
        if (split, tokens) not in self._of:
            self._of[split, tokens] = self._measured(split, tokens)
        return self._of[split, tokens]

    def _measured(self, split: str, tokens: int) -> References:
        corpus = self._setup.corpus
        if not corpus.is_text:
            nats = {} if corpus.chance is None else {"chance": corpus.chance}
            bits = {name: value / math.log(2) for name, value in nats.items()}
            return References(nats=nats, bits_per_byte=bits, counted=0, scored=0)
        length, lengths = self._setup.recipe.train.sequence_length, self._evaluate.lengths
        batches = list(self._setup.held_out_batches(
            split, length, rows=64, tokens=min(tokens, MOST_SCORED), span=length * max(lengths)
        ))
        before = np.concatenate([batch.inputs[batch.loss_mask].numpy() for batch in batches])
        after = np.concatenate([batch.labels[batch.loss_mask].numpy() for batch in batches])
        uniform = np.full(len(after), math.log(self._counts.vocabulary))
        parts = dict(zip(WEAKEST_FIRST, (uniform, *self._counts.nats(before, after))))
        size = max(int(corpus.byte_lengths[after].sum()), 1)
        return References(
            nats={name: float(part.mean()) for name, part in parts.items()},
            bits_per_byte={name: float(part.sum() / math.log(2) / size) for name, part in parts.items()},
            counted=self._counts.counted,
            scored=len(after),
        )
