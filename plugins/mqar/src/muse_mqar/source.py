"""The task, as Arora et al. define it (Zoology, 2023).

Letters: B examples, N tokens, K pairs, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import torch

from muse_core.contracts import Batch, Tokens
from muse_core.errors import DataError
from muse_mqar.options import MqarOptions

SPLITS = ("train", "validation", "test")


class Mqar:
    """k₁ v₁ … k_K v_K, then (N − 2K)/2 slots of two tokens. K slots, drawn without replacement with weight i^(a−1) for
    slot i = 1, 2, …, begin with a key each, in the order in which they were drawn; the label there is the key's value.
    Every other token is random, and no other label counts."""

    def __init__(self, options: MqarOptions, context: Any):
        self.options = options
        self.vocabulary_size = options.vocabulary
        self.chance = math.log(options.vocabulary - options.vocabulary // 2)  # a value, whichever

    def fingerprint(self) -> str:
        """Version of the generator and every option."""
        return f"mqar/1/{sorted(attrs.asdict(self.options).items())}"

    def examples(self, split: str, indices: np.ndarray, length: int) -> Batch:
        """``contracts.TaskSource``. Raises DataError for a length that does not hold the pairs."""
        if length % 2 or length < 4 * self.options.pairs:
            raise DataError(
                f"mqar: {self.options.pairs} pairs need an even sequence of at least {4 * self.options.pairs} tokens, "
                f"not {length}"
            )
        shape = (len(indices), length)
        ids, labels = np.empty(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        loss_mask = np.zeros(shape, dtype=bool)
        for row, index in enumerate(indices):
            self._fill(split, int(index), ids[row], labels[row], loss_mask[row])
        positions = torch.arange(length).expand(shape)
        return Batch(torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(loss_mask), Tokens(positions))

    def _fill(self, split: str, index: int, ids: np.ndarray, labels: np.ndarray, loss_mask: np.ndarray) -> None:
        """One example into ids, labels and counted, each (N,)."""
        options = self.options
        draw = np.random.Generator(np.random.Philox(key=[options.seed * len(SPLITS) + SPLITS.index(split), index]))
        pairs = options.pairs
        if split == "train" and options.easier:
            pairs = (*options.easier, pairs)[draw.integers(len(options.easier) + 1)]
        half = options.vocabulary // 2
        keys = 1 + draw.choice(half - 1, size=pairs, replace=False)
        values = half + draw.choice(options.vocabulary - half, size=pairs, replace=False)
        slots = (len(ids) - 2 * pairs) // 2
        log_weights = (options.power - 1) * np.log(np.arange(1, slots + 1))
        # The order of log-weights plus Gumbel noise is that of draws without replacement.
        chosen = np.argsort(-(log_weights + draw.gumbel(size=slots)))[:pairs]
        asked = 2 * pairs + 2 * chosen
        ids[:] = draw.integers(options.vocabulary, size=len(ids))
        ids[0 : 2 * pairs : 2], ids[1 : 2 * pairs : 2] = keys, values
        ids[asked] = keys
        labels[asked] = values
        loss_mask[asked] = True
