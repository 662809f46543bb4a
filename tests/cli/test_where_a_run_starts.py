"""Where a run may start: the names of its directories, and what it leaves alone in one that is there already."""

from __future__ import annotations

import fnmatch
import os
import threading
from functools import partial
from pathlib import Path

import pytest

from muse_core.cli.run import main
from muse_core.errors import StorageError
from muse_core.storage.directory_lock import HOLDER, LOCK
from muse_core.storage.disk import Disk, make_directory
from muse_core.storage.run_directory import ENDED, STARTED, RunDirectory
from tests.commands import called

RECIPE = """\
name = "tiny"
data = { use = "state-of-the-union", tokenizer = "bytes" }
model = { width = 16, depth = 1, block = ["attention", "feed-forward"] }
train = { steps = 1, batch_size = 2, sequence_length = 32, warmup_steps = 0, device = "cpu" }
"""

invoke = partial(called, main)


def test_runs_started_in_one_second_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [RunDirectory.claim_named("a", "x") for _ in range(4)]
    assert len({run.path for run in runs}) == 4 and all(run.path.parent == tmp_path / "runs" for run in runs)
    for run in reversed(runs):  # the first has made the folder ``runs``
        run.withdraw()
        run.close()
    assert list(tmp_path.iterdir()) == []


def test_a_parent_made_at_the_same_moment_is_accepted(tmp_path: Path) -> None:
    """The other process is a disk here that makes the folder between the look and the making: always, not by luck."""

    class Simultaneous(Disk):
        def mkdir(self, path: Path) -> None:
            os.mkdir(path)
            os.mkdir(path)

    make_directory(Simultaneous(), tmp_path / "new/1")
    assert (tmp_path / "new/1").is_dir()
    failures: list[Exception] = []
    for number in range(20):
        barrier = threading.Barrier(2)

        def claim(name: str, barrier: threading.Barrier = barrier, number: int = number) -> None:
            barrier.wait()
            try:
                RunDirectory.claim(tmp_path / str(number) / name, "x").close()
            except StorageError as error:
                failures.append(error)

        threads = [threading.Thread(target=claim, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_the_names_of_a_runs_own_files_are_known(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stages = ("--set", 'stages=["train", {use="evaluate", suites=["held-out"], tokens=64}]')
    ended = invoke(recipe, "--run-dir", run, "--report", *stages, "--set", "evaluate.final_tokens=64")
    assert ended.exit_code == 0 and (run / "evaluation-1.json").is_file(), ended.output
    unknown = {
        name for name in os.listdir(run) if not any(fnmatch.fnmatchcase(name, own) for own in (*STARTED, *ENDED))
    }
    assert unknown == {LOCK, HOLDER}


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "metrics.jsonl", "evaluation-1.json", "report.html", "pictures", "tensorboard"]
)
@pytest.mark.parametrize("wrong", ["train.steps=1", "init.from=nowhere"])
def test_a_run_takes_nobodys_files_for_its_own(recipe: Path, tmp_path: Path, name: str, wrong: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("mine")
    for _ in range(2):  # the first leaves nothing that the second would take for a start of its own
        failed = invoke(recipe, "--run-dir", folder, "--set", wrong)
        assert failed.exit_code == 3 and f"has {name}" in failed.output and "another run directory" in failed.output
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, "mine")]


@pytest.mark.parametrize(
    "wrong, code",
    [("train.sequence_length=9999999", 3), ("init.from=nowhere", 3), ("checkpoint.quota=1000", 3),
     ('data={use="files",paths=["none.txt"]}', 3), ('data.cache="~nobody-of-this-name/x"', 3),
     ('data={use="files",paths=["~nobody-of-this-name/x"]}', 3)],
)
def test_a_failed_start_leaves_nothing(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    for place in ((), ("--run-dir", tmp_path / "new/run")):
        failed = invoke(recipe, *place, "--set", wrong)
        assert failed.exit_code in (2, code) and isinstance(failed.exception, SystemExit), failed.output
        assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/notes.txt").write_text("mine")
    assert invoke(recipe, "--run-dir", tmp_path / "kept", "--set", wrong).exit_code in (2, code)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["notes.txt"]
