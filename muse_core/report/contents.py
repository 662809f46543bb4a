"""What a report needs of the model itself: parameters by component, a sample of text, time by component."""

from __future__ import annotations

import codecs
import itertools
import json
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from muse_core.contracts import Batch
from muse_core.data.batches import to_device
from muse_core.evaluation.held_out import undisturbed
from muse_core.model.generation import generate
from muse_core.training.preview import REST, layer_rows
from muse_core.training.setup import Setup

SAMPLE_TOKENS = 120
TEMPERATURE = 0.8
PROMPT_BYTES = 48
"""Held-out text that the sample goes on with."""
LONGEST_TIMED = 1024
WARMUP, REPEATS = 2, 5


def parameters_of(setup: Setup) -> list[dict[str, Any]]:
    """``component``, ``parameters`` and ``bytes``, summed over the layers of a component, the largest first. Bytes are
    those of a weights file: parameters and kept buffers, such as the integers of a compressed map."""
    sums: dict[str, int] = defaultdict(int)
    places: dict[str, str] = {}
    for name, component, _, count in layer_rows(setup):
        places[name] = component if name.startswith("blocks.") else name
        sums[places[name]] += count
        if name.startswith("blocks."):
            block, layer = name.rsplit(".", 1)
            places[f"{block}.norms.{layer}"] = component
    sizes: dict[str, int] = defaultdict(int)
    for key, tensor in setup.model.state_dict(keep_vars=True).items():
        found = next((places[name] for name in places if key.startswith(f"{name}.")), REST)
        sizes[found] += tensor.numel() * tensor.element_size()
    rows = [{"component": name, "parameters": count, "bytes": sizes[name]} for name, count in sums.items()]
    return sorted(rows, key=lambda row: -int(row["bytes"]))


def sample_of(setup: Setup, step: int, *, tokens: int = SAMPLE_TOKENS, seed: int = 0) -> dict[str, Any]:
    """Text that the model draws after the beginning of the validation text: ``prompt``, ``text``, ``temperature``,
    ``seed``, ``step``. The model and torch's random state are as before."""
    tokenizer = setup.corpus.tokenizer
    held_out = [int(token) for token in setup.corpus.split("validation").tokens[: 4 * PROMPT_BYTES]]
    ids: list[int] = []
    for token in itertools.dropwhile(lambda token: token == tokenizer.separator, held_out):
        if token == tokenizer.separator or len(tokenizer.decode_bytes(ids)) >= PROMPT_BYTES:
            break
        ids.append(token)
    with undisturbed(setup.model):
        drawn = generate(
            setup.model, ids, temperature=TEMPERATURE, seed=seed, stream_period=setup.stream_period,
            device=setup.precision.device, precision=setup.precision,
        )
        taken = list(itertools.takewhile(lambda token: token != tokenizer.separator, itertools.islice(drawn, tokens)))
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = "".join(decoder.decode(tokenizer.decode_bytes([token])) for token in taken) + decoder.decode(b"", True)
    return {"step": step, "prompt": tokenizer.decode(ids), "text": text, "temperature": TEMPERATURE, "seed": seed}


def times_of(setup: Setup) -> dict[str, Any]:
    """Seconds that the forward pass of one row spends in each component, median of five: ``rows`` with ``component``
    and ``seconds``, ``tokens``, ``device``. What no layer of a block spends is ``outside layers``."""
    device, length = setup.precision.device, min(setup.recipe.train.sequence_length, LONGEST_TIMED)
    layers = {name: component for name, component, _, _ in layer_rows(setup) if name.startswith("blocks.")}
    modules = {name: setup.model.get_submodule(name) for name in layers}
    batch = to_device(next(setup.held_out_batches("validation", length, rows=1, tokens=length)), device)
    rounds: list[dict[str, float]] = []
    with undisturbed(setup.model), setup.precision():
        for number in range(WARMUP + REPEATS):
            spent = _one_pass(setup.model, modules, layers, batch, device)
            rounds += [spent] if number >= WARMUP else []
    names = list(dict.fromkeys(name for one in rounds for name in one))
    rows = [{"component": name, "seconds": statistics.median(one[name] for one in rounds)} for name in names]
    return {"rows": sorted(rows, key=lambda row: -row["seconds"]), "tokens": length, "device": str(device)}


def _one_pass(
    model: nn.Module, modules: dict[str, nn.Module], layers: dict[str, str], batch: Batch, device: torch.device
) -> dict[str, float]:
    spent: dict[str, float] = dict.fromkeys(layers.values(), 0.0)
    began: list[float] = []

    def before(*_: Any) -> None:
        began.append(_now(device))

    def after(component: str) -> Any:
        def add(*_: Any) -> None:
            spent[component] += _now(device) - began.pop()

        return add

    handles = []
    for name, module in modules.items():
        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after(layers[name])))
    try:
        start = _now(device)
        output = model(batch.inputs, None, batch.tokens)
        model.logits(output.hidden)  # type: ignore[operator]
        whole = _now(device) - start
    finally:
        for handle in handles:
            handle.remove()
    return spent | {"outside layers": max(whole - sum(spent.values()), 0.0)}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def encoded(made: dict[str, Any]) -> bytes:
    """The content of ``report.json``."""
    return (json.dumps(made, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
