"""The calls of the causality gate's exact check once more, in the run's own precision: what raises in both is a fault
of the code, and what raises in that check alone is one of dtype or device."""

from __future__ import annotations

from typing import Any

import torch

from muse_core.contracts import State
from muse_core.evaluation.carried_state import read
from muse_core.evaluation.causality import VARIANTS, Variant, as_called, document_tokens, probe_length
from muse_core.model.precision import Precision

IN_CALLS = "with a text in several calls"


def failing_call(
    model: Any, vocabulary_size: int, periods: tuple[int, ...], precision: Precision
) -> tuple[str, Exception] | None:
    """How the model was called, and what that raised: the first of the exact check's ways of calling, with random ids
    in rows of its length, that does not work in this precision. None where all do."""
    length = probe_length(periods)
    ids = torch.randint(vocabulary_size, (2, length), generator=torch.Generator().manual_seed(0)).to(precision.device)
    for variant in VARIANTS:
        try:
            with as_called(model, variant.training), precision():
                _call(model, ids, variant)
        except Exception as error:  # the caller says it
            return variant.name, error
    half = length // 2
    try:
        with as_called(model, False), precision():
            read(model, ids[:1], (0, half, half + 1, length), periods)
    except Exception as error:  # the caller says it
        return IN_CALLS, error
    return None


def _call(model: Any, ids: torch.Tensor, variant: Variant) -> None:
    state: State = model(ids, None, document_tokens(ids, "none")).state if variant.carried else None
    model.logits(model(ids, state, document_tokens(ids, variant.resets)).hidden)
