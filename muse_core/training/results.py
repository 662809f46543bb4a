"""What a run has measured when it ends: the tables of held_out.json and summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

from muse_core.evaluation.held_out import HeldOut, Rows
from muse_core.evaluation.references import References
from muse_core.model.flops import active_parameters, parameter_count
from muse_core.training.loop import Loop
from muse_core.training.setup import Setup
from muse_core.training.summary import RunSummary

NOTHING_TRAINED = {"steps": 0, "accepted_steps": 0, "train_tokens": 0}


def held_out_table(
    split: str, length: int, rows: Rows, described: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    """What every document gave in each evaluated sequence, for comparisons in pairs, and the documents' names, where
    they have ``described`` them."""
    columns = attrs.asdict(rows)
    columns["hits"] = columns.pop("correct")
    table: dict[str, Any] = {"split": split, "length": length, "by_document": True}
    table |= {key: value.tolist() for key, value in columns.items()}
    if described:
        table["documents"] = {number: described[number] for number in sorted(set(table["document"]))}
    return table


def summary_table(
    setup: Setup,
    loop: Loop | None,
    measured: Mapping[int, HeldOut],
    *,
    trained: Mapping[str, int],
    so_far: RunSummary,
    references: References,
    seconds: float,
) -> dict[str, Any]:
    """``summary.json``. ``loop``: that of the last stage, None where this attempt trained nothing, so that ``trained``,
    ``Loop.progress`` of an earlier one, counts. ``measured``: held-out text by length, that of training first.
    ``seconds`` since the attempt began."""
    recipe, first = setup.recipe, next(iter(measured.values()))
    progress = loop.progress() if loop else NOTHING_TRAINED | {"planned_steps": recipe.train.steps} | trained
    of_training = loop.state.at.seconds if loop else next(reversed(so_far.seconds.values()), 0.0)
    memory = {}
    if setup.precision.device.type == "cuda":
        memory["peak_memory_bytes"] = torch.cuda.max_memory_allocated(setup.precision.device)
    spent, saved = (first.metrics.get(f"exit/flops_{what}_sum") for what in ("spent", "saved"))
    exit = {}
    if spent is not None and saved is not None:
        exit = {"held_out_flops_spent": spent, "held_out_flops_saved": saved}
    return {
        "name": recipe.name,
        "seed": recipe.seed,
        "parameters": parameter_count(setup.model),
        "active_parameters": active_parameters(setup.model),
        **progress,
        "stopped_by_time": bool(loop and not loop.done),
        "train_seconds": of_training,
        "tokens_per_second": progress["train_tokens"] / of_training if of_training else 0.0,
        **so_far.all_stages({loop.state.stage: (loop.state.at.tokens, of_training)} if loop else {}),
        "seconds": seconds,
        "held_out_split": recipe.evaluate.split,
        "held_out_loss": first.loss,
        "held_out_perplexity": first.perplexity,
        "held_out_bits_per_byte": first.bits_per_byte,
        "held_out_interval": first.interval and list(first.interval),
        "held_out_documents": first.documents,
        "held_out_tokens": first.tokens,
        "held_out_in_training": setup.corpus.in_training.get(recipe.evaluate.split),
        "held_out_accuracy": first.accuracy,
        "state_numbers": first.state_numbers,
        **references.summary(first.loss),
        "held_out_by_length": {str(length): result.bits_per_byte for length, result in measured.items()},
        "rollbacks": len(loop.incidents.known if loop else so_far.incidents),
        "device": str(setup.precision.device),
        "precision": setup.precision.dtype,
        "kernels": {key: chosen.backend for key, chosen in setup.kernels.selections.items()},
        **memory,
        **exit,
        **so_far.numbers(),
    }
