"""Every command that computes calls torch's vector functions on one element before its threads share a first call."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from muse_core.model import vector_functions
from muse_core.testing import warm
from muse_core.testing.import_probe import settings

# Writes to a file, in order, what torch was asked to compute until every vector function was called in both dtypes:
# name, dtype and number of elements of the result.
RECORDED = """\
import json, sys
from pathlib import Path
import torch
from torch.utils._python_dispatch import TorchDispatchMode

file, due, code, *sys.argv[1:] = sys.argv[1:]
missing = {tuple(pair) for pair in json.loads(due)}
rows = []

class Recorder(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if missing:
            name = function._schema.name.removeprefix("aten::")
            one = result[0] if isinstance(result, (tuple, list)) and result else result
            tensor = isinstance(one, torch.Tensor)
            row = [name, str(one.dtype) if tensor else "", one.numel() if tensor else 0]
            rows.append(row)
            missing.discard((name, row[1]))
        return result

try:
    with Recorder():
        exec(code)
finally:
    Path(file).write_text(json.dumps([rows, sorted(missing)]))
"""
OPENING = {"abs", "detach", "eq", "mul", "ne", "view"}
"""Of what opening a checkpoint consists, which asks whether its tensors are finite: none is a vector function."""
RUN = "from muse_core.cli.run import main; main(standalone_mode=False)"
MUSE = "from muse_core.cli import muse; muse(standalone_mode=False)"
CHECK = "from muse_core.testing.check import main; main()"
PYTHON = "import muse_core; muse_core.load(sys.argv[1]).logits('The state')"
PLAN = 'name = "p"\nbaseline = "a"\nseeds = [1]\narms = [{ name = "a", recipe = "tiny.toml" }]\n'
RECIPE = """\
format = 1
name = "tiny"
data = { use = "state-of-the-union", tokenizer = "bytes" }

[model]
width = 16
depth = 1
block = [{ use = "attention", heads = 1 }]

[train]
steps = 2
batch_size = 2
sequence_length = 16
warmup_steps = 1
device = "cpu"

[evaluate]
every = 100
tokens = 32
final_tokens = 32
"""


def recorded(folder: Path, code: str, *arguments: object, **environment: str) -> list[list[Any]]:
    """What torch computes in a process of its own up to the last of the vector functions' first calls."""
    file = folder / "recorded.json"
    due = json.dumps([[name, str(dtype)] for dtype in vector_functions.DTYPES for name in vector_functions.FUNCTIONS])
    command = [sys.executable, "-c", RECORDED, str(file), due, code, *map(str, arguments)]
    process = warm.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "2", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | environment,
    )
    assert process.returncode == 0, process.stderr
    rows, missing = json.loads(file.read_text())
    assert not missing, f"never called: {missing}"
    return rows


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder with a recipe and its run."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "tiny.toml").write_text(RECIPE)
    (folder / "plan.toml").write_text(PLAN)
    command = [sys.executable, "-c", RUN, "tiny.toml", "--run-dir", "run"]
    warm.run(command, cwd=folder, check=True, timeout=300, stdout=subprocess.DEVNULL,
             env=os.environ | {"OMP_NUM_THREADS": "1", "MUSE_CACHE": str(cache)})
    return folder


COMMANDS = {
    "run": (RUN, "tiny.toml", "--run-dir", "{new}"),
    "eval": (MUSE, "eval", "run", "--suite", "held-out", "--tokens", "32"),
    "generate": (MUSE, "generate", "run", "--prompt", "The", "--tokens", "2"),
    "export": (MUSE, "export", "run", "{new}", "--to", "torch"),
    "compare": (MUSE, "compare", "plan.toml", "-o", "{new}", "--dry-run"),
    "check": (CHECK, "--", "cosine"),
    "python": (PYTHON, "run"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_first_calls_are_of_one_element(command: str, project: Path, tmp_path: Path, cache: Path) -> None:
    code, *arguments = (word.replace("{new}", str(tmp_path / "new")) for word in COMMANDS[command])
    rows = recorded(project, code, *arguments, MUSE_CACHE=str(cache))
    larger = {name for name, _, size in rows if size > 1}
    assert larger <= OPENING


def test_names_are_those_that_torch_gives_to_onemkl() -> None:
    header = Path(torch.__file__).parent / "include" / "ATen" / "cpu" / "vml.h"
    given = re.findall(r"^IMPLEMENT_VML_MKL\((\w+), \w+\)", header.read_text(), re.MULTILINE)
    assert sorted(vector_functions.FUNCTIONS) == sorted(given)


@pytest.mark.usefixtures("one_thread")
def test_calls_draw_nothing_and_change_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_functions, "_called", False)
    before = settings()  # with the state of torch's random numbers
    vector_functions.call_vector_functions_once()
    assert settings() == before


@pytest.mark.parametrize("around", [torch.inference_mode, lambda: torch.device("meta")])
def test_calls_are_on_the_processor(around: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_functions, "_called", False)
    with around(), Devices() as devices:
        vector_functions.call_vector_functions_once()
    assert devices.seen == {"cpu"}


class Devices(TorchDispatchMode):
    """On which devices something is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        self.seen.add(result.device.type)
        return result
