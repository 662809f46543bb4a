"""muse bench: what it runs, and what it says where there is nothing to measure."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from muse_core.cli import bench as module
from muse_core.cli import muse


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure")
def test_without_a_gpu_it_says_what_to_do():
    code = "from muse_core.cli import muse; muse(['bench', 'kernels'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "no CUDA device" in done.stderr and "--only cpu" in done.stderr


def test_options_reach_the_benchmarks(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(module, "subprocess", SimpleNamespace(call=lambda command: called.append(command) or 3))
    options = ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "b.png"), "--only", "resolvent"]
    assert CliRunner().invoke(muse, ["bench", "kernels", *options]).exit_code == 3
    assert called == [[sys.executable, "-m", "muse_kernels.benchmarks", *options]]


def test_kernels_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    result = CliRunner().invoke(muse, ["bench", "kernels"])
    assert result.exit_code == 2 and "pip install muse-kernels" in result.output
