"""Runs of a comparison that run out of memory because others share their GPU: real processes, whose layer has room for
so many of them and raises in the next one what a GPU's libraries do."""

from __future__ import annotations

import json
import re
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from muse_core.cli.compare import FAILED_RUNS, compare
from muse_core.comparison import slots
from muse_core.comparison.cells import FAILED, Cell, reported_cells
from muse_core.comparison.plan import read_plan
from muse_core.comparison.slots import MOST_TRIES, Slots
from muse_core.errors import OutOfMemory
from muse_core.metrics.jsonl import read_rows
from tests.commands import called
from tests.comparison.conftest import tiny_recipe

PLUGIN = """
    import attrs
    from muse_core.component import Component
    from muse_core.hookspecs import hookimpl

    @attrs.frozen(kw_only=True)
    class Options:
        '''A layer that needs memory.'''
        room: int = 99
        '''Runs for which a GPU has memory, in a call with its number.'''
        number: int = 1
        '''The number of that call in its process.'''
        error: str = "torch"
        '''What becomes of one too many.'''

    @hookimpl
    def muse_layers():
        yield Component("crowded", options=Options, implementation="crowded_layer_plugin:Crowded")
"""
IMPLEMENTATION = """
    import os
    import signal
    import sys
    import time
    from pathlib import Path
    import torch
    from torch import nn
    from muse_core.contracts import LayerOutput

    def alive(path):
        try:
            os.kill(int(path.name), 0)
        except ProcessLookupError:
            return False
        return True

    class Crowded(nn.Module):
        def __init__(self, options, context):
            super().__init__()
            self.options, self.calls = options, 0
            self.linear = nn.Linear(context.width, context.width)

        def forward(self, x, state, signals, tokens):
            self.calls += 1
            if self.calls == self.options.number and {"--run-dir", "--resume"} & set(sys.argv):
                self.enter(Path(os.environ["CROWD"]) / os.environ.get("CUDA_VISIBLE_DEVICES", "host"))
            return LayerOutput(self.linear(x), None)

        def enter(self, gpu):
            gpu.mkdir(exist_ok=True)
            own, full, patience = gpu / str(os.getpid()), gpu.parent / "full", time.monotonic() + 60
            own.touch()
            # The first are there until one too many has come, so that it surely comes; one of them goes.
            while not full.exists():
                assert time.monotonic() < patience, "nobody else came"
                if len(list(gpu.iterdir())) > self.options.room:
                    own.unlink()
                    try:
                        full.touch(exist_ok=False)
                    except FileExistsError:
                        own.touch()
                        return
                    self.fail()
                time.sleep(0.02)
            if sum(map(alive, gpu.iterdir())) > self.options.room:
                own.unlink()
                self.fail()

        def fail(self):
            if self.options.error == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.options.error == "torch":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total")
            raise RuntimeError("CUDA error: out of memory\\nCompile with `TORCH_USE_CUDA_DSA` to enable assertions.\\n")
"""
call = partial(called, compare)


@pytest.fixture
def plan(install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its recipe has the layer in its place; ``arms`` are to be added."""
    install("crowded", PLUGIN)
    (install.site / "crowded_layer_plugin.py").write_text(textwrap.dedent(IMPLEMENTATION))
    monkeypatch.setenv("PYTHONPATH", str(install.site))
    monkeypatch.setenv("CROWD", str(tmp_path / "crowd"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "crowd").mkdir()
    (tmp_path / "r.toml").write_text(tiny_recipe(40, '[{ use = "crowded" }]'))
    return tmp_path / "p.toml"


def write(plan: Path, seeds: int, *sets: str, other: tuple[str, ...] = ()) -> None:
    """A plan of one variant, or of two where ``other`` sets something."""
    arms = [("one", sets), *([("other", other)] if other else [])]
    told = [f'{{ name = "{name}", recipe = "r.toml", set = {json.dumps(list(own))} }}' for name, own in arms]
    plan.write_text(
        f'name = "crowd"\nbaseline = "one"\nsplit = "validation"\nseeds = {list(range(1, seeds + 1))}\n'
        f"arms = [{', '.join(told)}]\n"
    )


def of_layer(**options: Any) -> tuple[str, ...]:
    return tuple(f"model.block[0].{key}={json.dumps(value)}" for key, value in options.items())


def sent_back(said: str) -> list[str]:
    return [line for line in said.splitlines() if "at a time there" in line]


@pytest.mark.parametrize("error, number", [("torch", 1), ("cuda", 60), ("killed", 60)])
def test_a_run_that_ran_out_beside_others_is_done_again_beside_fewer(
    plan: Path, tmp_path: Path, error: str, number: int
) -> None:
    """Before its first checkpoint and behind it, four runs in a place for two; a third one at any later time would be
    sent back too."""
    write(plan, 4, *of_layer(room=2, number=number, error=error))
    out = tmp_path / "out"
    done = call(plan, "-o", out, "--slots", 3)
    assert done.exit_code == 0, done.output
    (line,) = sent_back(done.output)
    how = "was killed, as for want of memory, after" if error == "killed" else "ran out of memory after"
    assert re.search(rf"one/validation-seed-\d: {how} .* beside 2 others: at most 2 at a time", line), line
    assert "failed" not in done.output and not list(out.rglob(FAILED))
    assert done.output.count("begins") + done.output.count("goes on") == 5
    summaries = [json.loads((out / f"one/validation-seed-{seed}/summary.json").read_text()) for seed in range(1, 5)]
    assert [one["steps"] for one in summaries] == [40] * 4
    name = line.split("/")[1].partition(":")[0]
    attempts = {row["attempt"] for row in read_rows(out / "one" / name / "metrics.jsonl")}
    assert len(attempts) == (1 if number == 1 else 2), "what was done until then is kept"


def test_runs_are_dealt_over_gpus_of_which_one_is_full(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variants of unequal size, of which both large runs come to one GPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    write(plan, 2, *of_layer(room=1), other=of_layer(number=10**9))
    done = call(plan, "-o", tmp_path / "out", "--slots", 4, "--gpus", "5,7")
    assert done.exit_code == 0, done.output
    (line,) = sent_back(done.output)
    assert "beside 1 other on GPU 5: at most 1 at a time" in line


def test_one_that_runs_out_alone_has_failed_with_its_own_words(plan: Path, tmp_path: Path) -> None:
    """Also where others were there at first: it is tried alone before."""
    write(plan, 1, *of_layer(room=0, error="cuda"), other=of_layer(number=10**9))
    out = tmp_path / "out"
    ended = call(plan, "-o", out, "--slots", 2)
    assert ended.exit_code == FAILED_RUNS, ended.output
    assert "one/validation-seed-1: begins" in ended.output and len(sent_back(ended.output)) == 1
    assert ended.output.count("one/validation-seed-1: begins") == 2, ended.output
    failure = (out / "one/validation-seed-1" / FAILED).read_text()
    assert failure.startswith("exit code 7: model: does not fit into the memory (CUDA error: out of memory)"), failure
    assert (out / "other/validation-seed-1/summary.json").is_file()


def test_jobs_of_a_scheduler_are_alone(plan: Path, tmp_path: Path) -> None:
    write(plan, 1, *of_layer(room=0), other=of_layer(number=10**9))
    said: list[str] = []
    cells = reported_cells(read_plan(plan), tmp_path / "out", {"one": None, "other": None})
    Slots(count=2, gpus=[], say=said.append, launch=lambda *given: slots.begin_here(*given)).work(
        lambda: [cell for cell in cells if not cell.settled()], lambda: None
    )
    assert not sent_back("\n".join(said)) and (cells[0].failure() or "").startswith("exit code 7: ")


class Ended:
    """A process that has ended."""

    def __init__(self, code: int | None):
        self.returncode = code

    def poll(self) -> int | None:
        return self.returncode


@pytest.mark.parametrize("codes", [
    [OutOfMemory.exit_code] * 40, [-9] * 40, [OutOfMemory.exit_code, -9] * 20,
], ids=["out of memory", "killed", "either"])
def test_what_never_fits_comes_to_an_end(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: list[int]
) -> None:
    """Runs of which each attempt runs out of memory, all at the same moment: fewer begin each time, until each has
    failed alone, and no attempt begins beside more than was said."""
    write(plan, 6)
    said: list[str] = []
    cells = reported_cells(read_plan(plan), tmp_path / "out", {"one": None})
    left, at_once = iter(codes), []
    monkeypatch.setattr(slots, "begin_here", lambda *given: Ended(next(left)))
    work = Slots(count=4, gpus=["0"], say=said.append, launch=slots.begin_here)
    fill = work._fill

    def filled(unsettled: Any) -> None:
        fill(unsettled)
        at_once.append(len(work.running))

    monkeypatch.setattr(Slots, "_fill", lambda self, unsettled: filled(unsettled))
    work.work(lambda: [cell for cell in cells if not cell.settled()], lambda: None)
    assert all(cell.failure() for cell in cells) and not work.running
    assert at_once[:4] == [4, 3, 2, 1] and set(at_once[4:]) <= {0, 1}, at_once
    assert [re.findall(r"at most (\d)", line) for line in said if "at most" in line] == [
        *[["3"]] * 4, *[["2"]] * 3, *[["1"]] * 2]
    if -9 not in codes:
        assert sum("begins" in line for line in said) == 4 + 3 + 2 + 6
    else:
        assert sum("begins" in line for line in said) <= 4 + 3 + 2 + 6 * MOST_TRIES


def test_the_limit_holds_for_the_gpu_alone_and_for_all_later_runs(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(plan, 9)
    cells = reported_cells(read_plan(plan), tmp_path / "out", {"one": None})
    processes: dict[Path, Any] = {}
    environments: dict[Path, str] = {}

    def begin(command: Any, log: Path, environment: Any) -> Any:
        processes[log.parent] = Ended(None)
        environments[log.parent] = environment["CUDA_VISIBLE_DEVICES"]
        return processes[log.parent]

    monkeypatch.setattr(slots, "begin_here", begin)
    said: list[str] = []
    work = Slots(count=6, gpus=["0", "1"], say=said.append, launch=slots.begin_here)

    def end(cell: Cell, code: int) -> None:
        processes[cell.path].returncode = code
        assert work._ended()
        if code == 1:
            assert cell.settled()

    def shared() -> list[int]:
        work._fill([cell for cell in cells if not cell.settled()])
        return [sum(environments[one.cell.path] == gpu for one in work.running) for gpu in ("0", "1")]

    assert shared() == [3, 3]
    first = next(one.cell for one in work.running if environments[one.cell.path] == "0")
    end(first, 7)
    assert shared() == [2, 3] and first not in [one.cell for one in work.running]
    other = next(one.cell for one in work.running if environments[one.cell.path] == "1")
    end(other, 1)
    assert shared() == [2, 3] and first in [one.cell for one in work.running], "it takes the first place that is free"
    on_first = next(one.cell for one in work.running if environments[one.cell.path] == "0")
    end(on_first, 1)
    assert shared() == [2, 3]
    again = Slots(count=6, gpus=["0", "1"], say=said.append, launch=slots.begin_here)
    again._fill([cell for cell in cells if not cell.settled()])
    assert len(again.running) == 6, "another call has all slots again"
