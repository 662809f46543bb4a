"""A run stands alone: what is opened later comes from its directory, from any folder, without its text; what differs is
said, and refused where it changes a number."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from click import Command
from click.testing import CliRunner

from muse_core.cli import muse as muse_command
from muse_core.cli.generate import _warnings_afterwards
from muse_core.cli.run import main as run_command
from muse_core.metrics.jsonl import read_rows
from muse_core.recipe.writing import to_toml
from muse_core.testing import warm

RECIPE = """\
format = 1
name = "tiny"
seed = 7
data = {{ use = "files", paths = ["{text}"], documents = "paragraph", tokenizer = {{ use = "bpe", vocabulary = 300 }} }}

[model]
width = 16
depth = 1
block = [{{ use = "attention", heads = 2 }}]

[train]
steps = 4
batch_size = 2
sequence_length = 16
warmup_steps = 2
log_every = 1
device = "cpu"
precision = "fp32"

[evaluate]
every = 100
tokens = 64
final_tokens = 64

[checkpoint]
every = 2
"""
WORDS = "the quick brown fox jumps over the lazy dog and sings of rivers mountains and rain".split()
MUSE = "from muse_core.cli import muse; muse()"


def paragraphs(count: int, words: list[str]) -> str:
    return "\n\n".join(" ".join(words[(i * j + i) % len(words)] for j in range(1, 30)) for i in range(1, count + 1))


def called(command: Command, *arguments: object, folder: Path, **environment: str) -> CompletedProcess[str]:
    """The command in this process, in a folder."""
    line = [str(argument) for argument in arguments]
    with contextlib.chdir(folder):
        ended = CliRunner(env=environment).invoke(command, line, catch_exceptions=False)
    return CompletedProcess(line, ended.exit_code, ended.stdout, ended.stderr)


def process(*arguments: str, **options: Any) -> CompletedProcess[Any]:
    """``muse`` in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | options.pop("env", {})
    line = [sys.executable, "-c", MUSE, *arguments]
    return warm.run(line, capture_output=True, timeout=120, env=environment, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a recipe and its run."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "text.txt").write_text(paragraphs(60, WORDS))
    (folder / "tiny.toml").write_text(RECIPE.format(text=folder / "text.txt"))
    done = called(run_command, "tiny.toml", "--run-dir", "run", folder=folder, MUSE_CACHE=str(folder / "cache"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change; its recipe still names the first one's text."""
    return Path(shutil.copytree(trained, tmp_path / "project"))


@pytest.fixture
def muse(project: Path, tmp_path: Path) -> Callable[..., CompletedProcess[str]]:
    """``muse`` in another folder, with a cache that holds nothing."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*arguments: object, **environment: str) -> CompletedProcess[str]:
        empty = {"MUSE_CACHE": str(tmp_path / "empty")}
        return called(muse_command, *arguments, folder=elsewhere, **empty | environment)

    return run


def edit(run: Path, change: Callable[[dict], None]) -> None:
    table = tomllib.loads((run / "recipe.toml").read_text())
    change(table)
    (run / "recipe.toml").write_text(to_toml(table))


def moved(run: Path, text: Path) -> None:
    """Recipe and lock name another text, as if the one that they name had changed there."""
    for name in ("recipe.toml", "muse.lock.toml"):
        table = tomllib.loads((run / name).read_text())
        (table if name == "recipe.toml" else table["recipe"])["data"]["paths"] = [str(text)]
        (run / name).write_text(to_toml(table))


def test_without_its_text_a_run_says_the_same(project: Path, muse: Callable) -> None:
    prompt = ("generate", project / "run", "--prompt", "the quick", "--tokens", 12, "--temperature", 0)
    first = muse(*prompt)
    assert first.returncode == 0 and first.stdout.startswith("the quick") and first.stderr == ""
    text = project / "text.txt"
    moved(project / "run", text)
    text.write_text(paragraphs(60, "zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich".split()))
    again = muse(*prompt)
    assert again.stdout == first.stdout, again.stderr
    measured = muse("diagnose", project / "run", "--text", "the quick brown fox", "--json")
    assert measured.returncode == 0, measured.stderr
    refused = muse("diagnose", project / "run")
    assert refused.returncode == 3 and "digests.data" in refused.stderr and "--text" in refused.stderr
    refused = muse("cost", project / "run", "--length", 16, "--reach", 16, "--repeats", 1)
    assert refused.returncode == 3 and "digests.data" in refused.stderr
    text.unlink()
    again = muse(*prompt)
    assert again.stdout == first.stdout, again.stderr
    assert muse("cost", project / "run", "--length", 16, "--repeats", 1).returncode == 0
    assert not any((project.parent / "empty").glob("corpora/*")), "no text was encoded"


def test_the_same_text_is_read_with_the_runs_tokenizer(project: Path, muse: Callable) -> None:
    measured = muse("diagnose", project / "run", "--json")
    assert measured.returncode == 0, measured.stderr
    here = {"folder": project, "MUSE_CACHE": str(project / "cache")}
    again = called(muse_command, "diagnose", project / "run", "--json", **here)
    assert json.loads(measured.stdout) == json.loads(again.stdout)


def test_what_is_not_as_the_lock_says(project: Path, muse: Callable) -> None:
    run = project / "run"
    prompt = ("generate", run, "--prompt", "the", "--tokens", 3)
    edit(run, lambda table: table["train"].update(steps=9))
    said = muse(*prompt)
    assert said.returncode == 0 and "recipe.train.steps: the lock says 4, here it is 9" in said.stderr
    edit(run, lambda table: table["model"].update(dropout=0.5))
    refused = muse(*prompt)
    assert refused.returncode == 2 and "recipe.model.dropout" in refused.stderr
    edit(run, lambda table: (table["model"].update(dropout=0.0), table["train"].update(steps=4)))
    (run / "tokenizer.json").write_text('{"kind": "bytes"}')
    refused = muse(*prompt)
    assert refused.returncode == 3 and "digests.tokenizer" in refused.stderr
    (run / "tokenizer.json").unlink()
    refused = muse(*prompt)
    assert refused.returncode == 3 and "is missing" in refused.stderr
    resumed = called(run_command, "--resume", run, folder=project, MUSE_CACHE=str(project / "cache"))
    assert resumed.returncode == 0, resumed.stderr
    assert muse(*prompt).returncode == 0, "resuming wrote the tokenizer"
    (run / "muse.lock.toml").unlink()
    refused = muse(*prompt)
    assert refused.returncode == 3 and "muse.lock.toml" in refused.stderr


def test_a_run_of_a_device_that_is_not_here_is_opened_on_another(project: Path, muse: Callable) -> None:
    run, text = project / "run", ("--text", "the quick brown fox")
    edit(run, lambda table: table["train"].update(device="cuda:99"))
    for command in (("diagnose", run, *text), ("report", run, "--model")):
        refused = muse(*command)
        assert refused.returncode == 2 and "train.device: 'cuda:99'" in refused.stderr
        opened = muse(*command, "--device", "cpu")
        assert opened.returncode == 0, opened.stderr
    refused = muse("report", run, "--device", "cpu")
    assert refused.returncode == 2 and "--device: a report opens a model with --model or --cost alone" in refused.stderr


def damage(run: Path, *generations: int) -> None:
    for number in generations:
        path = run / "checkpoints" / f"gen-{number:08d}" / "model.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_an_older_checkpoint_is_said_and_step_0_refused(project: Path, muse: Callable) -> None:
    run = project / "run"
    prompt = ("generate", run, "--prompt", "the", "--tokens", 3)
    damage(run, 3)
    said = muse(*prompt)
    assert said.returncode == 0 and "opened at step 2" in said.stderr.splitlines()[0]
    assert "generation 3: model.safetensors" in said.stderr.splitlines()[0]
    damage(run, 2)
    for command in (prompt, ("diagnose", run, "--text", "the quick")):
        refused = muse(*command)
        assert refused.returncode == 3 and "only the checkpoint of step 0" in refused.stderr
        assert muse(*command, "--step", 0).returncode == 0
    refused = muse(*prompt, "--step", 7)
    assert refused.returncode == 3 and "no checkpoint of step 7" in refused.stderr
    recipe = ("--set", f"init.from={json.dumps(str(run))}", "--run-dir", project / "second")
    refused = called(run_command, project / "tiny.toml", *recipe, folder=project, MUSE_CACHE=str(project / "cache"))
    assert refused.returncode == 3 and "init.from" in refused.stderr and "step 0" in refused.stderr
    assert not (project / "second" / "recipe.toml").exists()


def test_init_from_brings_its_tokenizer_along(project: Path, muse: Callable) -> None:
    run, cache = project / "run", str(project / "cache")
    other = project / "other.txt"
    other.write_text(paragraphs(60, [*WORDS, "another", "valley", "further"]))
    base = (project / "tiny.toml").read_text().replace(', tokenizer = { use = "bpe", vocabulary = 300 }', "")
    base = base.replace(str(tomllib.loads(base)["data"]["paths"][0]), str(other))
    (project / "second.toml").write_text(base + f'\n[init]\nfrom = "{run}"\n')
    done = called(run_command, "second.toml", "--run-dir", "second", folder=project, MUSE_CACHE=cache)
    assert done.returncode == 0, done.stderr
    assert (project / "second/tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    digests = tomllib.loads((project / "second/muse.lock.toml").read_text())["digests"]
    assert set(digests) == {"data", "tokenizer", "init"}
    own = ("second.toml", "--set", 'data.tokenizer={ use = "bpe", vocabulary = 300 }')
    refused = called(run_command, *own, "--run-dir", "third", folder=project, MUSE_CACHE=cache)
    assert refused.returncode == 2 and "another tokenizer" in refused.stderr and "init.fresh" in refused.stderr
    fresh = ("--set", 'init.fresh=["embedding.*"]', "--run-dir", "fourth")
    done = called(run_command, *own, *fresh, folder=project, MUSE_CACHE=cache)
    assert done.returncode == 0, done.stderr
    (row,) = [row for row in read_rows(project / "fourth/events.jsonl") if row["event"] == "weights"]
    assert "embedding.weight" in row["initialised_names"]
    # The run that gave weights and tokenizer may go; what it gave is here.
    shutil.rmtree(run)
    assert muse("generate", project / "second", "--prompt", "the", "--tokens", 3).returncode == 0
    resumed = called(run_command, "--resume", "second", folder=project, MUSE_CACHE=cache)
    assert resumed.returncode == 0, resumed.stderr


def test_a_lock_names_every_input(project: Path) -> None:
    """--locked says when the run of init.from or the recipe of a conversion is another."""
    cache = str(project / "cache")
    (project / "to.toml").write_text((project / "tiny.toml").read_text())
    (project / "staged.toml").write_text(
        (project / "tiny.toml").read_text().replace('name = "tiny"', 'name = "tiny"\nstages = [{ use = "convert", to = '
        f'"{project / "to.toml"}" }}]') + f'\n[init]\nfrom = "{project / "run"}"\n'
    )
    done = called(run_command, "staged.toml", "--run-dir", "staged", folder=project, MUSE_CACHE=cache)
    assert done.returncode == 0, done.stderr
    locked = ("--locked", project / "staged/muse.lock.toml", "--dry-run")
    again = ("--locked", project / "staged/muse.lock.toml", "--run-dir", "again")
    changed = (project / "tiny.toml").read_text().replace("width = 16", "width = 16\nnorm = \"layer\"")
    (project / "to.toml").write_text(changed)
    refused = called(run_command, *again, folder=project, MUSE_CACHE=cache)
    assert refused.returncode == 2 and "digests.stage_0" in refused.stderr and "digests.init" not in refused.stderr
    damage(project / "run", 3)
    refused = called(run_command, *again, folder=project, MUSE_CACHE=cache)
    assert refused.returncode == 2 and "digests.init" in refused.stderr
    assert called(run_command, *locked, folder=project, MUSE_CACHE=cache).returncode == 0


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (("--prompt", b"caf\xe9"), 2, "not UTF-8"),
    (("--prompt", "a", "--temperature", "nan"), 2, "--temperature"),
    (("--prompt", "a", "--temperature", "inf"), 2, "--temperature"),
    (("--prompt", "a", "--top-p", "nan"), 2, "--top-p"),
    (("--prompt", "a", "--seed", str(10**20)), 2, "--seed"),
    ((), 2, "--prompt-file"),
    (("--prompt-file", "nowhere.txt"), 2, "nowhere.txt"),
    (("--prompt", "a", "--stop", ""), 2, "--stop"),
    (("--prompt", "a", "--lookup", "4"), 2, "--temperature 0"),
])
def test_bad_arguments_of_generate_are_sentences(trained: Path, arguments: tuple, code: int, said: str) -> None:
    done = process("generate", str(trained / "run"), *arguments)
    assert done.returncode == code and said in done.stderr.decode() and "Traceback" not in done.stderr.decode()


def test_prompts_samples_and_stops_of_generate(trained: Path) -> None:
    def said(*arguments: str, given: str | None = None) -> str:
        line = ["generate", str(trained / "run"), "--tokens", "12", *arguments]
        done = CliRunner().invoke(muse_command, line, input=given, catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    alone = [said("--prompt", "the quick", "--top-k", "9", "--seed", seed) for seed in ("0", "1")]
    together = said("--prompt-file", "-", "--top-k", "9", "--samples", "2", given="the quick")
    assert together == f"--- sample 1, seed 0\n{alone[0]}--- sample 2, seed 1\n{alone[1]}"
    greedy = said("--prompt", "the quick", "--temperature", "0")
    assert said("--prompt", "the quick", "--temperature", "0", "--lookup", "4") == greedy
    long = [said("--prompt", "the quick", "--temperature", "0", "--tokens", "60", *how) for how in ([], ["--eager"])]
    assert long[0] == long[1] and long[0].startswith(greedy.removesuffix("\n"))
    stop = greedy.removeprefix("the quick")[2:4]
    ended = greedy.partition(stop)[0] + "\n"
    assert said("--prompt", "the quick", "--temperature", "0", "--stop", stop) == ended
    # A million tokens, if it did not stop when all samples have.
    twice = said("--prompt", "the quick", "--temperature", "0", "--stop", stop, "--samples", "2", "--tokens", "1000000")
    assert twice == f"--- sample 1, seed 0\n{ended}--- sample 2, seed 1\n{ended}"
    assert said("--prompt", "", "--temperature", "0")
    for number in ("0", "16385", "100000000"):
        line = ["generate", str(trained / "run"), "--prompt", "a", "--samples", number]
        refused = CliRunner().invoke(muse_command, line)
        assert refused.exit_code == 2 and f"{number} is not in the range 1<=x<=16384" in refused.stderr


def test_a_warning_stands_behind_the_text_that_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with _warnings_afterwards():
        logging.getLogger("muse_core.model.replay").warning("slow: %s", "why")
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err == "slow: why\n"


def test_output_in_a_poorer_encoding(trained: Path) -> None:
    prompt = ("generate", str(trained / "run"), "--prompt", "Γ und θ", "--tokens", "3")
    done = process(*prompt, env={"PYTHONIOENCODING": "ascii"}, text=True)
    assert done.returncode == 0 and done.stdout.startswith("? und ?")
    assert process("plugins", "list", env={"PYTHONIOENCODING": "latin-1"}).returncode == 0


def test_what_is_not_compiled_waits_for_no_compiler(trained: Path) -> None:
    """torch's compiler takes as long to import as torch itself."""
    program = MUSE.replace("muse()", "muse(standalone_mode=False); import sys; print(*sys.modules)")
    for arguments in (["generate", "run", "--prompt", "the", "--tokens", "2"],
                      ["eval", "run", "--suite", "held-out", "--tokens", "64"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=trained, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        modules = done.stdout.splitlines()[-1].split()
        assert "torch" in modules and "torch._dynamo" not in modules
