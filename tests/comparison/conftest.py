"""A recipe that trains in a moment, for plans to list, and what its runs find around them."""

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


@pytest.fixture(autouse=True)
def _surroundings(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSE_CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Runs are processes of their own here too, which need not import torch each.
    monkeypatch.setattr(slots, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": warm.Popen}))
