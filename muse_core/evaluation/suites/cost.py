"""What reading and drawing a token costs after so many tokens of context."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from muse_core.evaluation.scoring import Reader
from muse_core.evaluation.suites.subject import Subject

STEPS = 16
"""Tokens that are read one by one after the context, of which the median counts."""


def state_bytes(state: Any) -> int:
    """Bytes of all tensors of a carried state."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(state) if torch.is_tensor(leaf))


def cost_rows(subject: Subject) -> list[dict[str, Any]]:
    """One row a length, of one sequence of random tokens: seconds a token while the context is read in segments,
    seconds of one more token, the bytes of the state, in all and for each token read, and ``peak_bytes``: on a GPU the
    most that tensors took meanwhile, the model's weights among them, elsewhere None."""
    setup = subject.setup
    reader = Reader(setup)
    on_gpu = setup.precision.device.type == "cuda"
    generator = torch.Generator().manual_seed(subject.seed)
    rows = []
    for multiple in subject.lengths:
        length = subject.length * multiple
        ids = torch.randint(setup.corpus.vocabulary_size, (1, length + STEPS), generator=generator)
        reader.after(ids[:, : min(length, reader.segment)])  # once for what is made at the first call
        _wait(on_gpu)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(setup.precision.device)
        began = time.perf_counter()
        _, state = reader.after(ids[:, :length])
        _wait(on_gpu)
        reading = (time.perf_counter() - began) / length
        size = state_bytes(state)
        times = []
        for place in range(length, length + STEPS):
            began = time.perf_counter()
            hidden, state = reader.after(ids[:, place : place + 1], state, place)
            reader.logits(hidden)
            _wait(on_gpu)
            times.append(time.perf_counter() - began)
        rows.append({
            "length": length, "seconds_per_token_read": reading, "seconds_per_token_drawn": statistics.median(times),
            "state_bytes": size, "state_bytes_per_token": size / length,
            "peak_bytes": torch.cuda.max_memory_allocated(setup.precision.device) if on_gpu else None,
            "device": str(setup.precision.device),
        })
    return rows


def _wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()
