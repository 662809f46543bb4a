"""A run as a program of torch: it runs where no module of MUSE is, and gives the run's scores."""

from __future__ import annotations

import errno
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import muse_core
from muse_core.cli import muse
from muse_core.errors import RecipeError
from muse_core.interchange.program import traced
from muse_core.testing import warm

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = Path(__file__).parents[2] / "docs" / "guide" / "how-to" / "export.md"
SHORT = ["--to", "torch", "--length", "4"]


def no_room(path: Path, data: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_a_program_gives_the_runs_scores_without_muse(finished_run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(muse, ["export", str(finished_run), str(tmp_path / "program"), "--to", "torch"])
    assert done.exit_code == 0 and "differs" not in done.output, done.output
    (code,) = re.findall(r"^```python\n(import json\n.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    more = (
        "\nimport sys\nassert not any(name.startswith('muse') for name in sys.modules)\n"
        "torch.save((row, program(row.repeat(2, 1))), 'scores.pt')\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code + more]
    ended = warm.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    row, scores = torch.load(tmp_path / "scores.pt")
    due = muse_core.load(finished_run).logits(row[0].tolist())
    torch.testing.assert_close(scores[0], due, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores[1], scores[0])
    with zipfile.ZipFile(tmp_path / "program" / "model.pt2") as file:
        told = b"".join(file.read(name) for name in file.namelist())
    assert str(Path(__file__).parents[2]).encode() not in told, "the program names files of this machine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", no_room)
        full = CliRunner().invoke(muse, ["export", str(finished_run), str(tmp_path / "full"), *SHORT])
    assert full.exit_code == 3 and "No space left on device - free some space" in full.output
    assert not list(tmp_path.glob("*full*"))
    again = CliRunner().invoke(muse, ["export", str(finished_run), str(tmp_path / "program"), "--to", "torch"])
    assert again.exit_code == 3 and "not an empty directory" in again.output


class InTwoResults(nn.Module):
    """Two results out of a region without autocast, as layers have that keep fp32 within it, and none out of another,
    which torch 2.13 writes and cannot read."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = ids.float()
        with torch.autocast("cpu", enabled=False):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                one = x.sin()
            two = x.cos()
            doubled = torch.mul(x, 2, out=torch.empty_like(x))
        with torch.autocast("cpu", enabled=False):
            x.mean()
        return one + two * doubled


def test_regions_without_autocast_are_part_of_the_program(tmp_path: Path) -> None:
    program, ids, due = traced(Wrapped(InTwoResults()), 7, 5, "runs/x")
    torch.export.save(program, tmp_path / "x.pt2")
    assert "autocast" not in str(program.graph)
    torch.testing.assert_close(torch.export.load(tmp_path / "x.pt2").module()(ids), due)


def test_layers_leave_the_number_of_rows_open() -> None:
    """Of a program of torch any number of rows is asked, also beyond what a layer computes at once."""
    block = [
        {"use": "sliding-window", "heads": 2, "window": 4}, {"use": "gla", "heads": 2}, "mamba3",
        {"use": "atlas", "heads": 2, "chunk": 4},
    ]
    built = muse_core.build({
        "name": "x", "model": {"width": 16, "depth": 1, "block": block}, "kernels": {"backend": ["torch"]},
        "train": {"sequence_length": 8, "precision": "fp32", "device": "cpu"},
    })
    program, ids, due = traced(built.model.eval(), 257, 8, "runs/x")
    with torch.no_grad():
        found = program.module()(ids.repeat(3, 1))
    torch.testing.assert_close(found, due.repeat(3, 1, 1))


class ByValues(nn.Module):
    """A model whose way depends on its values."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return ids if ids.sum() > 0 else -ids


class Foreign(nn.Module):
    """A model with an operation that torch alone does not have."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.ops.muse_test.twice(ids.float())


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, ids: torch.Tensor) -> object:
        from types import SimpleNamespace

        return SimpleNamespace(hidden=self.inner(ids))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[..., None].float()


@torch.library.custom_op("muse_test::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.mark.parametrize(("inner", "words"), [
    (ByValues(), "cannot make a program of this model"), (Foreign(), r"does not have \(muse_test.twice\)"),
])
def test_what_is_no_program_of_torch_alone_is_refused(inner: nn.Module, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as refused:
        traced(Wrapped(inner), 7, 5, "runs/x")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("arguments", [["--to", "torch", "--dtype", "bf16"], ["--length", "8"]])
def test_options_of_the_other_form_are_refused(arguments: list[str], finished_run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(muse, ["export", str(finished_run), str(tmp_path / "x"), *arguments])
    assert done.exit_code == 2 and "--dtype goes with --to hf" in done.output and not (tmp_path / "x").exists()
