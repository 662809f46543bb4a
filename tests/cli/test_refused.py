"""What a disk, a permission or a wrong path refuses is one sentence with its exit code, and nothing is lost."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from safetensors import SafetensorError
from torch import nn

import muse_core
from muse_core.cli import muse
from muse_core.cli.given_text import given_text
from muse_core.cli.run import main
from muse_core.data.kept import lock_in
from muse_core.errors import RecipeError, StorageError
from muse_core.interchange import hugging_face
from muse_core.metrics.console import Display
from muse_core.metrics.jsonl import Records
from muse_core.report.reading import read_run
from muse_core.storage.disk import storage_errors
from muse_core.storage.run_directory import require_run, runs_below
from muse_core.training.trained import newest_of

RECIPE = 'name = "x"\n[model]\nwidth = 16\ndepth = 1\nblock = ["feed-forward"]\n'


def run_in(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    for file in ("recipe.toml", "muse.lock.toml"):
        (path / file).write_text('name = "x"\n[train]\nsteps = 60\n')
    return path


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device is Linux's")
@pytest.mark.parametrize("arguments", [
    ["muse_core", "plugins", "list"], ["muse_core", "show", "{run}"], ["muse_core", "recipe", "fill", "{recipe}"],
    ["muse_core", "--help"], ["muse_core", "--version"], ["muse_core", "plugins", "show", "--help"],
    ["muse_core.cli.run", "--help"],
])
def test_a_full_disk_behind_standard_output(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(RECIPE)
    names = {"run": run_in(tmp_path, "run"), "recipe": tmp_path / "x.toml"}
    command = [sys.executable, "-m", *(one.format(**names) for one in arguments)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for environment in (buffered, buffered | {"PYTHONUNBUFFERED": "1"}):
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
        assert done.stderr == "the output: No space left on device - free some space on that disk\n"
        assert done.returncode == 3


def test_a_file_where_a_folder_should_be_made(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(RECIPE)
    (tmp_path / "plan.toml").write_text(
        'name = "p"\nbaseline = "a"\nseeds = [1]\narms = [{ name = "a", recipe = "x.toml" }]\n')
    result = CliRunner().invoke(muse, ["compare", str(tmp_path / "plan.toml"), "-o", str(tmp_path / "x.toml" / "out")])
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1), result.output
    assert "Not a directory" in result.stderr


def test_what_may_not_be_read_is_no_advice_about_writing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Permission denied - this user is not permitted to"):
        with storage_errors("read", tmp_path):
            raise PermissionError(13, "Permission denied", str(tmp_path))


def test_a_recipe_filled_into_itself_survives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "x.toml"
    recipe.write_text("# mine\n" + RECIPE)
    from muse_core.storage.disk import Disk

    def full(self: Disk, handle: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Disk, "write", full)
        result = CliRunner().invoke(muse, ["recipe", "fill", str(recipe), "-o", str(recipe)])
    said = f"{recipe}: cannot write: No space left on device - free some space on that disk\n"
    assert (result.exit_code, result.stderr) == (3, said)
    assert recipe.read_text().startswith("# mine") and [one.name for one in tmp_path.iterdir()] == ["x.toml"]
    link = tmp_path / "link.toml"
    link.symlink_to(recipe)
    assert CliRunner().invoke(muse, ["recipe", "fill", str(recipe), "-o", str(link)]).exit_code == 0
    assert link.is_symlink() and "width = 16" in recipe.read_text()


@pytest.mark.parametrize("arguments, refused", [
    (["recipe", "fill", "x.toml", "-o", "filled.toml"], "filled.toml: cannot write"),
    (["recipe", "upgrade", "x.toml", "-o", "x.toml"], "x.toml: cannot write"),
    (["recipe", "schema", "-o", "schema.json"], "schema.json: cannot write"),
    (["plugins", "new", "wave", "--kind", "layer"], "muse-wave: cannot write the plugin"),
], ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None)
def test_a_disk_that_takes_nothing_is_told_with_what_to_do(
    arguments: list[str], refused: str, tmp_path: Path
) -> None:
    (tmp_path / "x.toml").write_text(RECIPE)
    command = ["sh", "-c", 'ulimit -f 0; exec "$0" "$@"', sys.executable, "-m", "muse_core", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    advice = "raise the limit (ulimit -f), or choose another file system\n"
    said = f"{refused}: File too large - files may not become so large here: {advice}"
    assert (done.returncode, done.stderr) == (3, said)
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {"x.toml": RECIPE}


def test_weights_that_cannot_be_exported_name_the_systems_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(hugging_face, "save_file", full)
    with pytest.raises(OSError, match="No space left") as raised:
        hugging_face._write_weights(nn.Linear(2, 2), tmp_path / "w")
    assert raised.value.errno == 28 and raised.value.filename == str(tmp_path / "w")


def test_a_run_that_is_taken_back_while_it_is_listed_disturbs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("runs/a", "runs/b"):
        run_in(tmp_path, name)
    is_file = os.path.isfile

    def taken_back(path: str | Path) -> bool:
        there = is_file(path)
        if Path(path) == tmp_path / "runs" / "b" / "muse.lock.toml":
            Path(path).unlink()
        return there

    monkeypatch.setattr("muse_core.storage.run_directory.os.path.isfile", taken_back)
    assert [one.name for one in runs_below(tmp_path / "runs", depth=1)] == ["b", "a"]


def test_a_folder_of_runs_is_listed_and_named_where_a_run_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("runs/a", "runs/compared/arm/b", "runs/c"):
        run_in(tmp_path, name)
    run_in(tmp_path, "runs/a/stages/0-x")
    assert {one.name for one in runs_below(tmp_path / "runs", depth=3)} == {"a", "b", "c"}
    with pytest.raises(StorageError, match=r"holds no run .* such as .*runs/[ac], .*runs/[ac]$"):
        require_run(tmp_path / "runs")
    (tmp_path / "runs" / "c" / "recipe.toml").write_text("damaged =")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(muse, ["show"])
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and lines[0].split()[:2] == ["run", "state"]
    assert {tuple(line.split()) for line in lines[1:]} == {
        ("runs/a", "unfinished", "0", "of", "60"), ("runs/compared/arm/b", "unfinished", "0", "of", "60")}
    assert result.stderr.startswith("runs/c/recipe.toml: is damaged")
    table = CliRunner().invoke(muse, ["show", "--format", "csv"])
    assert [row["planned_steps"] for row in csv.DictReader(table.stdout.splitlines())] == ["60", "60"]
    assert CliRunner().invoke(muse, ["show", "--format", "latex"]).stdout.startswith("% \\usepackage{booktabs}\n")
    assert CliRunner().invoke(muse, ["show", "--format", "csv", "--json"]).exit_code == 2
    told = CliRunner().invoke(muse, ["show", "--json"])
    assert told.exit_code == 0 and told.stderr.startswith("runs/c/recipe.toml: is damaged")
    assert {one["path"] for one in json.loads(told.stdout)} == {"runs/a", "runs/compared/arm/b"}
    damaged = muse_core.runs()[-1]
    assert damaged["run"] == "runs/c" and damaged["state"].startswith("cannot be read: runs/c/recipe.toml: is damaged")
    assert CliRunner().invoke(muse, ["show", "none"]).exit_code == 3
    assert CliRunner().invoke(muse, ["show", "runs/a"]).stdout.startswith("x in runs/a")


def test_checkpoints_that_are_gone_are_not_waited_for(tmp_path: Path) -> None:
    run = run_in(tmp_path, "run")
    with pytest.raises(StorageError, match="has no checkpoint yet - wait"):
        newest_of(run)
    (run / "summary.json").write_text("{}")
    with pytest.raises(StorageError, match="has no checkpoint, although it has trained: .* put them back"):
        newest_of(run)


def test_a_lock_that_is_gone_or_damaged_is_told_alike_by_all_that_open_a_run(tmp_path: Path) -> None:
    run = run_in(tmp_path, "run")
    with pytest.raises(StorageError, match="its lock cannot be used: .*not a lock of format 1"):
        lock_in(run)
    (run / "muse.lock.toml").unlink()
    (run / "recipe.toml").write_text(RECIPE)
    result = CliRunner().invoke(main, ["--resume", str(run), "--no-report"])
    assert result.exit_code == 3 and "has no muse.lock.toml, which says" in result.stderr, result.stderr


def test_an_interrupted_run_stands_where_it_was_saved(tmp_path: Path) -> None:
    run = run_in(tmp_path, "run")
    records = Records(run)
    records.metrics({"event": "train", "stage": 0, "step": 40, "loss": 1.0})
    records.event({"event": "interrupted", "stage": 0, "step": 45, "reason": "signal 15"})
    records.close()
    assert read_run(run).steps == 45


def test_a_misspelt_command_is_told_the_near_one() -> None:
    result = CliRunner().invoke(muse, ["comapre", "x"])
    assert result.exit_code == 2 and "did you mean 'compare'?" in result.stderr


def test_a_text_that_is_the_name_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("contents", encoding="utf-8")
    (tmp_path / "The").write_text("")
    with pytest.raises(RecipeError, match="'book.txt' is a file: --text-file reads it"):
        given_text("book.txt", None, "--text", "the text")
    assert given_text(None, Path("book.txt"), "--text", "the text") == "contents"
    (tmp_path / "book.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert given_text(None, Path("book.txt"), "--text", "the text") == "one\ntwo\nthree\n"
    for plain in ("The", "no.txt", "a" * 5000, "x\0.y"):
        assert given_text(plain, None, "--text", "the text") == plain


@pytest.mark.parametrize("width", [72, 80, 100, 120, 200])
def test_the_time_left_is_whole_in_terminals_of_every_width(width: int) -> None:
    said = io.StringIO()
    display = Display(Console(file=said, width=width, force_terminal=True))
    display.start(300, 0)
    for step in (1, 2):
        display.step(step, {"loss": 12.0825, "bits_per_byte": 13.005, "tokens_per_second": 41_300.0})
    display.finish()
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.getvalue())
    assert "…" not in plain and re.search(r"2/300 loss .* tokens/s .*left (0:0|-:-)", plain)
    assert ("train" in plain) == (width >= 120)


def test_memory_of_the_processor_that_ran_out_is_a_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    from muse_core.comparison import targets

    def too_long(*_: object, **__: object) -> None:
        torch.empty(2**48, dtype=torch.float64)

    monkeypatch.setattr(targets, "training_cost", too_long)
    model = nn.Linear(2, 2)
    place = type("Precision", (), {"device": torch.device("cpu")})()
    target = targets.Target(
        path=Path("x"), recipe=None, model=model, precision=place, kernels=None, weights="fresh weights",
        held_out=None)
    assert targets.measure_step(target, 8, None, 1) == {"length": 8, "failed": "does not fit with 1 rows"}
    monkeypatch.setattr(targets, "training_cost", lambda *_, **__: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        targets.measure_step(target, 8, None, 1)


ASKED = [
    "eval {run} {gone}", "generate {gone} --prompt a", "diagnose {gone}", "compress {gone}", "export {gone} x",
    "cost {run} {gone}", "show {gone}", "report {gone}", "compare {gone} {run}",
]


def test_a_run_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    """Before torch is imported, before the first of several is measured, and with the name that was meant."""
    run_in(tmp_path, "phase2-base")
    run, gone = tmp_path / "phase2-base", tmp_path / "phase2-bse"
    program = """
import sys
from click.testing import CliRunner
from muse_core.cli import muse
from muse_core.cli.run import main
commands = [(muse, line.split()) for line in sys.argv[2:]] + [(main, ["--resume", sys.argv[1]])]
for command, arguments in commands:
    result = CliRunner().invoke(command, arguments)
    print(result.exit_code, result.stderr.strip(), arguments[0], result.exception)
print("torch" in sys.modules)
"""
    asked = [text.format(run=run, gone=gone) for text in ASKED]
    done = subprocess.run([sys.executable, "-c", program, str(gone), *asked], capture_output=True, text=True)
    *lines, imported = done.stdout.splitlines()
    assert len(lines) == len(asked) + 1 and imported == "False", done.stdout + done.stderr
    for line in lines:
        meant = f"such as {run}" if "no such file" not in line else "no such file or run directory"
        assert line[:2] in ("3 ", "2 ") and f"{gone}: " in line and meant in line, line


def test_without_lm_eval_its_help_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    told, short = (CliRunner().invoke(muse, ["lm-eval", one]) for one in ("--help", "-h"))
    assert told.exit_code == 0 and told.output == short.output and "pip install" in told.output
    asked = CliRunner().invoke(muse, ["lm-eval", "--tasks", "x"])
    assert asked.exit_code == 2 and asked.stderr.startswith("lm_eval is not installed; install it with: pip")
