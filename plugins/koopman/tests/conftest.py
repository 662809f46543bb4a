"""A small trained run, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

import muse_core

TABLE = {
    "name": "small",
    "data": {"use": "state-of-the-union", "tokenizer": "bytes"},
    "model": {
        "width": 48,
        "depth": 1,
        "block": [
            {"use": "resolvent", "heads": 12, "potential": ["non-hermitian"]},
            {"use": "fast-weights", "heads": 2},
            {"use": "feed-forward"},
        ],
    },
    "train": {"steps": 60, "batch_size": 8, "sequence_length": 64, "warmup_steps": 5, "precision": "fp32",
              "learning_rate": 5e-3},
    "evaluate": {"every": 1000, "tokens": 512, "final_tokens": 1024},
    "checkpoint": {"every": 1000},
}


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a model of 60,000 parameters."""
    folder = tmp_path_factory.mktemp("koopman") / "small"
    muse_core.train(TABLE, run_dir=folder, quiet=True)
    return folder
