"""The forced spike where steps are recorded: what Python does in a step is done when it is recorded, never again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.fx.experimental.proxy_tensor import make_fx

from muse_core.contracts import Result
from muse_core.exit_gates.bench import Bench
from muse_core.exit_gates.findings import Outcome
from muse_core.exit_gates.rollback import ONSET, STEPS, Spike, forced_spike
from muse_core.metrics.console import Display
from muse_core.plugins import load_plugins
from muse_core.recipe import check_table
from muse_core.training.monitors import STREAK


def test_a_recording_has_the_spike_at_its_steps() -> None:
    spike = Spike()
    recorded, found = None, []
    for _ in range(STEPS):
        spike.batch(None)
        if recorded is None:
            spike.loss(Result(torch.ones(()), {}, {}, None))
            recorded = make_fx(lambda total: spike.loss(Result(total, {}, {}, None)).total)(torch.ones(()))
        found.append(recorded(torch.tensor(2.0)).item())
    assert found == [2.0] * ONSET + [math.inf] * STREAK + [2.0] * (STEPS - ONSET - STREAK)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recorded_run_is_rolled_back(cache: Path, tmp_path: Path) -> None:
    table = {
        "name": "tiny",
        "data": {"use": "state-of-the-union", "tokenizer": "bytes", "cache": str(cache)},
        "model": {"width": 16, "depth": 1, "block": [{"use": "fast-weights", "heads": 2}, "feed-forward"]},
        "train": {"batch_size": 4, "sequence_length": 20, "device": "cuda", "cuda_graph": True},
        "evaluate": {"tokens": 80, "final_tokens": 80},
        "monitors": ["gradient-safety"],
    }
    bench = Bench(check_table(table, load_plugins()), tmp_path / "gates", Display(Console(quiet=True)), steps=4)
    finding = forced_spike(bench)
    assert finding.outcome is Outcome.PASS, finding
