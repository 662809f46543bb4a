"""What stands in metrics.jsonl, as data: the reference page, the JSON schema and the tests are made from it.

Imports no torch.
"""

from __future__ import annotations

from typing import Any

import attrs

SCHEMA = 1
"""Version of the rows. It grows when a key changes its meaning or goes; new keys do not change it."""

NUMBER = "number"
COUNT = "whole number"
TEXT = "text"


@attrs.frozen
class Key:
    """One key of a row."""

    name: str
    type: str
    unit: str
    doc: str
    always: bool = attrs.field(default=True, kw_only=True)
    """Stands in every row of its event."""
    null: bool = attrs.field(default=False, kw_only=True)
    """May be null."""


@attrs.frozen
class Event:
    """One kind of row."""

    doc: str
    keys: tuple[Key, ...]
    others: str = ""
    """What keys that are not listed hold; nothing else may stand in the row when empty. Their names have a slash."""
    plain: bool = attrs.field(default=False, kw_only=True)
    """Some of them have none."""


BOOKKEEPING = (
    Key("event", TEXT, "", "Kind of the row."),
    Key("sequence", COUNT, "rows", "Number of the row in the file, from 0, without gaps."),
    Key("attempt", COUNT, "processes", "Which process wrote the row, from 1."),
)
"""In every row."""

STEP = (
    Key("stage", COUNT, "stages", "Number of the stage, from 0; each counts its steps from the start."),
    Key("step", COUNT, "steps", "Steps done, skipped ones included."),
)

MEASURED = (
    Key("loss", NUMBER, "nats per token", "Cross-entropy of the next token on held-out text."),
    Key("perplexity", NUMBER, "per token", "e^loss."),
    Key("bits_per_byte", NUMBER, "bits per byte", "Nats of all tokens over ln 2 over the UTF-8 bytes of the text."),
    Key("bits_per_byte_low", NUMBER, "bits per byte", "2.5 % quantile over resampled documents."),
    Key("bits_per_byte_high", NUMBER, "bits per byte", "97.5 % quantile."),
    Key("accuracy", NUMBER, "", "Share of tokens to which the model gave the highest score."),
    Key("tokens", COUNT, "tokens", "Tokens scored."),
    Key("bytes", COUNT, "bytes", "UTF-8 bytes of those tokens."),
)

OF_LAYERS = (
    "`<layer>/<measure>`: what a layer measured over the held-out text, joined over batches as over micro-batches."
)

SHARED = {
    "gamma": ("decay", "broadening"),
    "snr": ("signal_to_noise",),
    "gate_entropy": ("gate_entropy",),
    "gate_load": ("gate_load",),
}
"""Key of a train row → last parts of the metrics that it is the mean of."""

EVENTS: dict[str, Event] = {
    "schema": Event(
        "The first row of every attempt.",
        (
            Key("schema", COUNT, "", "Version of the rows that follow."),
            Key("muse_core", TEXT, "", "Version of the program that writes them."),
        ),
    ),
    "train": Event(
        "Every `train.log_every` steps, and after the first and the last.",
        (
            *STEP,
            Key("accepted", COUNT, "steps", "Optimiser updates done."),
            Key("loss", NUMBER, "nats per token", "Cross-entropy of the step's own batch, before its update; of a "
                "stage with another objective that one's value, which has neither perplexity nor bits (nan)."),
            Key("perplexity", NUMBER, "per token", "e^loss."),
            Key(
                "ppl_delta", NUMBER, "per token",
                "Perplexity less that of the train row before it: the newest of this stage with a smaller step, rows "
                "of a stretch that a rollback or a resumption repeats left out. Null in the first row.", null=True,
            ),
            Key("bits_per_byte", NUMBER, "bits per byte", "Of the same tokens."),
            Key("gradient_norm", NUMBER, "nats per token and parameter unit",
                "Global 2-norm of the gradient before clipping, accumulated in float64."),
            Key("gradient_nonfinite", NUMBER, "tensors", "Parameters whose gradient holds a NaN or an infinity."),
            Key("state_nonfinite", NUMBER, "tensors",
                "Weights and moments that held a NaN or an infinity before the update."),
            Key("rollbacks", NUMBER, "", "Rollbacks within the last 1,000 steps."),
            Key("learning_rate", NUMBER, "", "Of the newest update."),
            Key("tokens_per_second", NUMBER, "tokens per second",
                "Target tokens over wall clock since the train row before; evaluation, probes and checkpoints are "
                "left out."),
            Key("train_tokens", COUNT, "tokens", "Target tokens of all updates of this stage so far."),
            Key("seconds", NUMBER, "seconds", "Wall clock of all steps of this stage so far, over all attempts; nan "
                "where rows of earlier ones are missing."),
            Key("gamma", NUMBER, "nats per token", "Mean over layers of `<layer>/decay`, the Γ of a memory, and "
                "`<layer>/broadening`, the Γ + η of a resolvent.", always=False),
            Key("snr", NUMBER, "", "Entries of the fast weights over the noise that writes alone would leave, 1 for "
                "noise: mean over layers of `<layer>/…/signal_to_noise`; in steps where a period ended.",
                always=False),
            Key("gate_entropy", NUMBER, "bits", "Mean over gates of the entropy of a token's openness, 0 for a gate "
                "that decides and 1 for one that never does.", always=False),
            Key("gate_load", NUMBER, "", "Mean over gates of the openness, 0 to 1.", always=False),
        ),
        "`<layer>/<measure>`, such as `blocks.3.fast-weights/energy`: what a layer measured on the step, joined over "
        "micro-batches by its suffix (`_sum`, `_min`, `_max`, otherwise the mean weighted by tokens); a loss of a "
        "layer or of the stage, in nats per token, under its name. `<monitor>/<number>`: what a monitor measured. "
        "`ranks/<number>`: of several processes the most memory (`memory_bytes_max`), the rank that took longest from "
        "the step's start to the end of its last forward pass (`slowest`), and seconds of that "
        "(`forward_seconds_max`, `forward_seconds_min`), which recorded steps do not tell.",
        plain=True,
    ),
    "eval": Event(
        "Every `evaluate.every` steps, on the same validation tokens each time.", (*STEP, *MEASURED), OF_LAYERS
    ),
    "probe": Event(
        "When probes of monitors ran.", STEP,
        "`<monitor>/<number>`: the results, described with each [monitor](components/safety-monitor/index.md).",
    ),
    "final": Event(
        "At the end, one for each context length.",
        (
            Key("split", TEXT, "", "Which text: validation or test."),
            Key("length", COUNT, "tokens", "Context length."),
            *MEASURED,
        ),
        OF_LAYERS,
    ),
}


def json_schema() -> dict[str, Any]:
    """A JSON schema of one row, draft 2020-12. A number that is not finite is its name in quotes."""
    number = {"anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}]}
    types = {NUMBER: number, COUNT: {"type": "integer"}, TEXT: {"type": "string"}}
    rows = []
    for name, event in EVENTS.items():
        keys = (*BOOKKEEPING, *event.keys)
        properties = {
            key.name: {"anyOf": [types[key.type], {"type": "null"}]} if key.null else types[key.type] for key in keys
        }
        rows.append(
            {
                "properties": properties | {"event": {"const": name}},
                "required": [key.name for key in keys if key.always],
                "patternProperties": {"/": number} if event.others else {},
                "additionalProperties": number if event.plain else False,
            }
        )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "oneOf": rows}
