"""The conformance suite of sinks."""

from __future__ import annotations

import copy
import importlib.util
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from muse_core.building import construct
from muse_core.metrics.sinks import SinkContext
from muse_core.testing.building import resolve
from muse_core.testing.cases import Case
from muse_core.testing.suite import Suite

MEASURED = {"loss": 2.5, "perplexity": math.e**2.5, "bits_per_byte": 1.2, "accuracy": 0.4, "tokens": 64, "bytes": 64}
ROWS: tuple[dict[str, Any], ...] = (
    {"event": "schema", "schema": 1, "muse_core": "0"},
    *({"event": "train", "stage": 0, "step": step, "accepted": step, "learning_rate": 1e-3, "ppl_delta": None,
       "blocks.0.fast-weights/energy": 0.5, "gradient_norm": math.inf if step == 2 else 1.0} | MEASURED
      for step in (1, 2, 3, 2, 3)),
    {"event": "eval", "stage": 0, "step": 3, "bits_per_byte_low": 1.1, "bits_per_byte_high": 1.3} | MEASURED,
    {"event": "probe", "stage": 0, "step": 3, "niah-probe/recall": math.nan},
    {"event": "train", "stage": 1, "step": 1, "accepted": 1, "ppl_delta": None} | MEASURED,
    {"event": "final", "split": "validation", "length": 64} | MEASURED,
)
"""As a run with a rollback and a second stage gives them."""
EVENT = {"event": "rollback", "step": 3, "monitor": "rollback", "reason": "up", "onset": None, "loss": math.nan}
SUMMARY = {
    "name": "conformance", "held_out_loss": 2.5, "held_out_interval": [2.4, 2.6], "kernels": {},
    "stopped_by_time": False, "held_out_in_training": None,
}


class SinkSuite(Suite):
    """Takes the rows of a run; see ``contracts.Sink``. A sink whose packages are not installed is skipped."""

    kind = "sink"

    def opened(self, case: Case, run: Path, attempt: int = 1) -> Any:
        """The sink of a run in this folder."""
        use = resolve(case.kind, case.name, case.options, self.registry())
        for package, what in getattr(use.options, "packages", {}).items():
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"the package {package} is not installed: pip install '{what}'")
        recipe = {"name": "conformance", "seed": 0, "train": {"steps": 3}}
        return construct(use, SinkContext(run=run, name="conformance", seed=0, recipe=recipe, attempt=attempt))

    def fed(self, sink: Any) -> None:
        """Everything that a run tells, and its end."""
        for row in ROWS:
            sink.row(row)
        sink.event(EVENT)
        sink.end(SUMMARY)
        sink.close()

    def test_takes_everything_that_a_run_tells(self, case: Case, tmp_path: Path) -> None:
        given = copy.deepcopy((ROWS, EVENT, SUMMARY))
        self.fed(self.opened(case, tmp_path))
        assert repr((ROWS, EVENT, SUMMARY)) == repr(given), "it changes the rows that it is given"

    def test_is_opened_again_by_a_resumed_run(self, case: Case, tmp_path: Path) -> None:
        sink = self.opened(case, tmp_path)
        sink.row(ROWS[0])
        sink.row(ROWS[1])
        sink.close()
        self.fed(self.opened(case, tmp_path, attempt=2))

    def test_may_be_closed_before_anything_is_told(self, case: Case, tmp_path: Path) -> None:
        self.opened(case, tmp_path).close()

    def test_moves_no_generator(self, case: Case, tmp_path: Path) -> None:
        before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        self.fed(self.opened(case, tmp_path))
        assert torch.equal(torch.random.get_rng_state(), before[0]), "moved torch's global generator"
        assert np.array_equal(np.random.get_state()[1], before[1]), "moved numpy's global generator"
        assert random.getstate() == before[2], "moved Python's global generator"
