"""Run directories as a run writes them, made in milliseconds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from muse_core.metrics.jsonl import Records

HOSTILE = "</script><script>alert(1)</script><img src='http://example.org/x'>\x00\ud800&\"'"
RECIPE = """\
format = 2
name = {name}
seed = 3
[model]
width = 16
[train]
steps = 40
learning_rate = {rate}
[[monitors]]
use = "rollback"
[[monitors]]
use = "niah-probe"
"""
LOCK = """\
format = 1
[[packages]]
name = "muse-core"
version = "0.2.0"
[digests]
data = "{data}"
tokenizer = "{tokenizer}"
"""
BYTES = [400.0, 300.0, 500.0, 200.0]


def summary(bits: float, **more: object) -> dict:
    return {
        "name": "made", "seed": 3, "parameters": 1000, "steps": 40, "planned_steps": 40, "train_tokens": 1280,
        "tokens_per_second": 50.0, "held_out_split": "validation", "held_out_loss": 1.5, "held_out_bits_per_byte": bits,
        "held_out_interval": [bits - 0.1, bits + 0.1], "rollbacks": 1, "device": "cpu", "precision": "float32",
    } | more


def write_rows(path: Path, scale: float) -> None:
    records = Records(path)
    for step in range(1, 41):
        loss = scale * (1 + 4 / step)
        row = {"event": "train", "stage": 0, "step": step, "loss": loss, "perplexity": 2.0,
               "bits_per_byte": 1.44 * loss,
               "gradient_norm": 1 / step, "learning_rate": 0.01, "tokens_per_second": 50.0 + step, "seconds": 1.0}
        layers = {f"blocks.{depth}.fast-weights/{what}": 0.01 * (depth + 1) * step for depth in (0, 1)
                  for what in ("decay", "energy")}
        records.metrics(row | layers)
        if step == 20:  # taken back below: of the two rows with this step the last one counts
            records.metrics(row | {"bits_per_byte": 99.0})
            records.event({"event": "rollback", "stage": 0, "step": 20, "monitor": "rollback", "reason": HOSTILE})
            records.metrics(row)
        if step % 10 == 0:
            records.metrics({"event": "eval", "stage": 0, "step": step, "loss": loss, "bits_per_byte": 1.5 * loss,
                             "bits_per_byte_low": 1.4 * loss, "bits_per_byte_high": 1.6 * loss})
            records.metrics({"event": "probe", "stage": 0, "step": step, "niah-probe/recall": step / 50,
                             "niah-probe/distance": 40.0})
    records.metrics({"event": "train", "stage": 0, "step": 40, "loss": float("nan"), "perplexity": float("nan")})
    records.metrics({"event": "train", "stage": 0, "step": 40, "loss": 1.5, "perplexity": 2.0, "bits_per_byte": 2.0})
    records.close()


@pytest.fixture
def made_run(tmp_path: Path) -> Callable[..., Path]:
    """``made_run(name, …)`` writes a run directory; ``factors`` scale its nats on each of four documents."""

    def make(
        name: str, *, finished: bool = True, factors: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0), rate: float = 0.01,
        data: str = "text", tokenizer: str = "bytes", split: str = "validation", length: int = 32,
        sizes: list[float] = BYTES, sources: tuple[str, ...] = (),
    ) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        (path / "recipe.toml").write_text(RECIPE.format(name=json.dumps(HOSTILE.replace("\x00\ud800", "")), rate=rate))
        (path / "muse.lock.toml").write_text(LOCK.format(data=data, tokenizer=tokenizer))
        write_rows(path, sum(factors) / 4)
        sample = {"step": 40, "prompt": "My fellow ", "text": HOSTILE, "temperature": 0.8, "seed": 0}
        parts = [{"component": "fast-weights", "parameters": 750}, {"component": "embedding", "parameters": 250}]
        (path / "report.json").write_text(json.dumps({"parameters": parts, "sample": sample}))
        if finished:
            nats = [factor * size * math.log(2) for factor, size in zip(factors, sizes, strict=True)]
            rows = {"split": split, "length": length, "by_document": True, "document": [0, 1, 2, 3], "hits": [0] * 4,
                    "nats": nats, "tokens": sizes, "bytes": sizes}
            if sources:
                rows["documents"] = {number: {"name": f"{number}", "source": of} for number, of in enumerate(sources)}
            (path / "held_out.json").write_text(json.dumps(rows))
            bits = sum(nats) / math.log(2) / sum(sizes)
            (path / "summary.json").write_text(json.dumps(summary(bits, held_out_split=split)))
        return path

    return make
