"""A recipe that trains in a moment, for plans to list, and what its runs find around them."""

import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from muse_core.comparison import slots
from muse_core.testing import warm

ATTENTION = '[{ use = "attention", heads = 2 }, { use = "feed-forward" }]'


def tiny_recipe(steps: int, block: str = ATTENTION) -> str:
    """Its TOML."""
    return f"""\
name = "tiny"
data = {{ use = "state-of-the-union" }}
[model]
width = 16
depth = 1
block = {block}
[train]
steps = {steps}
batch_size = 2
sequence_length = 32
warmup_steps = 1
log_every = 1
device = "cpu"
precision = "fp32"
[evaluate]
final_tokens = 2048
"""


PLAN = """\
name = "two"
baseline = "one"
seeds = [1, 2]
arms = [{ name = "one", recipe = "r.toml" }, { name = "other", recipe = "r.toml", set = ["model.depth=3"] }]
[tune]
key = "train.learning_rate"
values = [1e-3, 2e-3]
"""
"""A plan of two variants of the recipe r.toml beside it, with a sweep at its end."""


@pytest.fixture
def plan(tmp_path: Path):
    """Writes a plan, and the recipe that it names; gives the path."""

    def write(text: str = PLAN) -> Path:
        (tmp_path / "r.toml").write_text('name = "tiny"\n[model]\nblock = ["feed-forward"]\n')
        (tmp_path / "p.toml").write_text(text)
        return tmp_path / "p.toml"

    return write


def finish(cell, score: float | str) -> None:
    """A finished run of a sweep."""
    cell.path.mkdir(parents=True)
    (cell.path / "summary.json").write_text(json.dumps({"held_out_bits_per_byte": score}))


def mean_of(rows: dict[str, list[float]], measure: str) -> float:
    """What a run's summary says of these rows."""
    if measure == "bits_per_byte":
        return sum(rows["nats"]) / math.log(2) / sum(rows["bytes"])
    return sum(rows["nats" if measure == "loss" else "hits"]) / sum(rows["tokens"])


def ended(cell, documents: list[int], rows: dict[str, list[float]], measure: str = "bits_per_byte", **more) -> None:
    """A finished run and what it found of every document."""
    cell.path.mkdir(parents=True)
    told = dict.fromkeys(("parameters", "train_tokens", "train_seconds", "tokens_per_second", "stopped_by_time"), 0)
    (cell.path / "summary.json").write_text(json.dumps(
        {"device": "cpu", f"held_out_{measure}": mean_of(rows, measure)} | told | more))
    (cell.path / "held_out.json").write_text(json.dumps({"document": documents, "by_document": True} | rows))


@pytest.fixture(autouse=True)
def _surroundings(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSE_CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Runs are processes of their own here too, which need not import torch each.
    monkeypatch.setattr(slots, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": warm.Popen}))
