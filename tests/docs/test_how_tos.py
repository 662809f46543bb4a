"""The code of the how-tos runs as it stands."""

from __future__ import annotations

import inspect
import json
import math
import re
from pathlib import Path

import pytest

from muse_core.contracts import KernelRequest
from muse_core.errors import RecipeError
from muse_core.model.kernels import select_backend

HOW_TO = Path(__file__).parents[2] / "docs" / "guide" / "how-to"


def code(page: str, first: str) -> str:
    """The indented block of a page that starts with these words."""
    text = (HOW_TO / page).read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, flags=re.MULTILINE)
    (found,) = [block for block in map(inspect.cleandoc, blocks) if block.startswith(first)]
    return found


def test_records_are_read_with_the_last_row_of_a_step(tmp_path: Path) -> None:
    rows = [
        {"event": "train", "step": 1, "loss": 5.0},
        {"event": "eval", "step": 1, "loss": 5.5},
        {"event": "train", "step": 2, "loss": "nan"},
        {"event": "train", "step": 2, "loss": 4.0},
        {"event": "train", "step": 3, "loss": "inf"},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    names: dict[str, object] = {}
    exec(code("records.md", "import json").replace("runs/NAME/metrics.jsonl", str(path)), names)
    assert names["steps"] == (1, 2, 3)
    assert names["loss"] == (5.0, 4.0, math.inf)


def test_the_backend_is_asked_and_its_refusal_read() -> None:
    names: dict[str, type] = {}
    exec(code("kernel-backend.md", "class Fast"), names)
    backend = names["Fast"](None, None)
    chosen = select_backend(KernelRequest("fast_weights", "cuda", "float32"), [("fast", backend)])
    assert chosen.backend == "fast"
    with pytest.raises(RecipeError, match="fast is written for GPUs"):
        select_backend(KernelRequest("fast_weights", "cpu", "float32"), [("fast", backend)])
    with pytest.raises(RecipeError, match="fast does not have it"):
        select_backend(KernelRequest("resolvent_diagonal", "cuda", "float32"), [("fast", backend)])
