"""Every command that a page shows is known to the program that it calls, names what exists, and is executed where that
takes seconds. A command that no rule below covers fails by its name."""

from __future__ import annotations

import argparse
import inspect
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from muse_core.cli import muse
from muse_core.cli.run import main

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "README.md", "CONTRIBUTING.md", "kernels/README.md", "docs/**/*.md", "plugins/*/README.md", "examples/*/README.md",
)
PAGES = [path for pattern in FOLDERS for path in sorted(ROOT.glob(pattern))]
TESTED = {"docs/guide/first-plugin.md": "test_tutorial.py executes the page in its order"}
PROGRAMS = "muse|muse-run|python|pip|tox|pytest|ruff|mkdocs|tensorboard|torchrun"
COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:cd \S+ && )?(?:{PROGRAMS})(?= |$)")
CODE = re.compile(r"^```\w*[^\n]*\n(.*?)^```$|((?:^ {4}.*\n|^\n(?= {4}))+)", flags=re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)`((?:muse|muse-run) [^`]+)`(?!`)")
TINY = [
    "data.tokenizer=bytes", "model.depth=2", "model.width=32", "train.steps=2", "train.batch_size=2",
    "train.sequence_length=96", "train.micro_batch=2", "train.warmup_steps=1", "train.device=cpu", "evaluate.tokens=512",
    "evaluate.final_tokens=512", "evaluate.every=2", "model.block[0].heads=4", "monitors=[]",
    "initializers=[]",
]
FRESH = ["--set", "init.from="]
SLOW = {
    "gates": "takes minutes; tests/exit_gates executes it",
    "bench": "needs a GPU; tests/cli/test_bench.py executes it",
    "selftest": "the promises are tests of their own",
}
"""Subcommands of muse that are parsed and not executed."""
NOT_RUN = {
    "tox": "makes an environment; tests/test_tox.py asks it for its configuration",
    "pytest": "tests of these folders run anyway",
    "ruff": "needs no test: it is an environment of tox",
    "tensorboard": "a program of others",
    "pip": "needs a network; tests/test_third_party.py installs every distribution",
}
PLACEHOLDERS = {
    "RECIPE": "recipes/phase2_base.toml", "RECIPE…": "recipes/phase2_base.toml", "FILE": "recipes/phase2_base.toml",
    "PLAN": "recipes/experiments/mqar.plan.toml", "PLAN.toml": "recipes/experiments/mqar.plan.toml",
    "recipe.toml": "recipes/phase2_base.toml", "NAME": "fast-weights", "NAME|PATH": "fast-weights",
    "a.b=c": "train.steps=2", "cpu|cuda|cuda:1": "cpu", "N": "4", "S": "1", "NATS": "0.3", "KIND": "layer",
    "wave": "wave", "muse-wave": "wave",
}


def commands_of(text: str) -> list[str]:
    """Commands in blocks of code, lines joined at a backslash, and in spans of the text."""
    found = []
    for match in CODE.finditer(text):
        block = (match[1] or match[2]).replace("\\\n", " ")
        for line in block.splitlines():
            line = re.sub(r"\s+", " ", line.strip().removeprefix("$ "))
            if COMMAND.match(line):
                found.append(line)
    prose = CODE.sub("", text)
    return [*found, *(re.sub(r"\s+", " ", span) for span in SPAN.findall(prose))]


COMMANDS = [
    (path.relative_to(ROOT).as_posix(), command)
    for path in PAGES if path.relative_to(ROOT).as_posix() not in TESTED
    for command in dict.fromkeys(commands_of(path.read_text(encoding="utf-8")))
]


def simple(command: str) -> list[tuple[str, list[str]]]:
    """The folder and the words of each command of a line: optional parts are given, comments and variables left out."""
    command = re.sub(r"\[((?:--|[A-Z]+ …)[^\]']*)\]", lambda part: part[1].replace(" | ", " "), command)
    folder, found = ".", []
    for part in command.split(" && "):
        words = [word for word in shlex.split(part, comments=True) if word != "…"]
        while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words[0] == "cd":
            folder = words[1]
        else:
            found.append((folder, words))
    return found


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which runs/NAME is a run of two steps."""
    folder = tmp_path_factory.mktemp("commands")
    arguments = [str(ROOT / "recipes" / "phase2_base.toml"), "--run-dir", str(folder / "runs" / "NAME")]
    ended = CliRunner().invoke(main, [*arguments, *(word for one in TINY for word in ("--set", one))])
    assert ended.exit_code == 0, ended.output
    return folder


@pytest.fixture
def here(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files of the repository that commands name, and a run."""
    for name in ("recipes", "plugins", "tests", "kernels", "examples", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(run / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(command: click.Command, arguments: list[str]) -> str:
    ended = CliRunner().invoke(command, arguments)
    assert ended.exit_code == 0, f"{command.name} {shlex.join(arguments)}\n{ended.output}\n{ended.exception!r}"
    return ended.output


def parsed(command: click.Command, name: str, arguments: list[str]) -> None:
    """Raises click.UsageError for an option or a subcommand that does not exist, or a value that it does not take."""
    context = click.Context(command, info_name=name)
    while isinstance(command, click.Group):
        assert arguments, f"{name} without a subcommand"
        found = command.get_command(context, arguments[0])
        assert found is not None, f"{name} has no subcommand {arguments[0]}"
        command, name, arguments = found, f"{name} {arguments[0]}", arguments[1:]
    command.make_context(name, list(arguments))


def with_placeholders(words: list[str]) -> list[str]:
    """Words with the run in place of any other, and a recipe that exists in place of RECIPE."""
    filled = []
    for word in words:
        word = PLACEHOLDERS.get(word, word)
        word = re.sub(r"^(?:runs/(?!NAME-again)[\w.-]+|DIRECTORY|RUN)(?=/|$)", "runs/NAME", word)
        filled.append(word)
    return filled


def files_exist(words: list[str]) -> None:
    for word in words:
        if re.match(r"(?:recipes|plugins|tests|kernels|examples)/", word) and "=" not in word:
            assert Path(word).exists(), f"{word} does not exist"


def muse_run(words: list[str], synopsis: bool) -> None:
    parsed(main, "muse-run", words)
    if "--resume" in words:
        if not synopsis:
            call(main, words)
        return
    if "--run-dir" in words:  # the one made by the fixture stands there
        at = words.index("--run-dir")
        words = words[:at] + words[at + 2:]
    if any("phase1-base" in word or word.endswith("phase2_from_phase1.toml") for word in words):
        words = [*words, *FRESH]  # it begins with a run that is not here
    if words and words[0].startswith("recipes/"):
        words = [*words, "--set", "data.tokenizer=bytes", "--set", "model.depth=2", "--set", "train.device=cpu"]
        words = [word for word in words if word not in ("--device",)] if "--device" not in words else words
    shown = call(main, [*dict.fromkeys(["--dry-run"]), *[word for word in words if word != "--dry-run"]])
    assert "dry run: no run was begun" in shown


def muse_subcommand(words: list[str]) -> None:
    parsed(muse, "muse", words)
    name = words[0]
    if name in SLOW:
        return
    if name == "compare":
        if Path(words[1]).exists():  # the plan of a page is tested where the page writes it
            call(muse, [*words, "--dry-run"])
        return
    if name == "cost":
        targets = [word for word in words[1:] if re.match(r"(?:recipes|runs|phase2|transformer)", word)]
        small = ["--length", "32", "--tokens", "32", "--repeats", "1", "--device", "cpu", "--vocabulary", "16"]
        reach = ["--reach", "32"] if "--reach" in words else []
        shallow = [] if any(target.startswith("runs/") for target in targets) else ["--set", "model.depth=1"]
        call(muse, ["cost", *targets, *small, *reach, *shallow])
        return
    if name == "plugins" and words[1] == "check":
        return  # the conformance tests are these checks
    call(muse, words)


def python(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A script or module reads the arguments that the page gives, with its own parser, and stops there."""
    if words[:2] == ["-m", "venv"] or words[:2] == ["-m", "http.server"] or words[0] == "-":
        return  # a module of Python; what a page pipes into Python is executed by test_code_of_the_pages
    if words[0].endswith("bytes_moved.py"):
        assert len(words) == 2  # it takes one recipe and has no parser; it needs half a minute
        return
    class Parsed(Exception):
        """The arguments were read."""

    read = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *arguments: object, **keywords: object) -> None:
        read(parser, *arguments, **keywords)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", words[1:] if words[0] == "-m" else words)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(Parsed):
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")


def pip(words: list[str]) -> None:
    """Files that are installed exist, and so do extras of the project's distributions."""
    assert words[0] == "install", words
    for word in words[1:]:
        path = word.split("[")[0]
        if path.startswith("."):
            assert (Path(path) / "pyproject.toml").exists(), word
        if path == "kernels" or path.endswith(".txt"):
            assert (ROOT / path).exists(), word
        if path.startswith("muse-") and "[" in word:
            folders = [ROOT, ROOT / "kernels", *ROOT.glob("plugins/*")]
            projects = [tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in folders
                        if (folder / "pyproject.toml").exists()]
            (project,) = [project for project in projects if project["name"] == path]
            assert word[len(path) + 1:-1] in project["optional-dependencies"], word


def environment(words: list[str]) -> None:
    """The environment that tox is asked for is one of tox.ini's."""
    for name in (words[at + 1] for at, word in enumerate(words) if word == "-e"):
        text = (ROOT / "tox.ini").read_text()
        assert f"[testenv:{name}]" in text or re.fullmatch(r"py(3\d\d)?-(torch|triton)", name), name


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_a_command_of_a_page(
    page: str, command: str, here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, (program, *words) in simple(command):
        monkeypatch.chdir(here / folder)
        words = with_placeholders(words)
        if "…" in command or "…" in " ".join(words):
            words = [word for word in words if "…" not in word]
        if folder == ".":
            files_exist(words)
        if program == "muse-run":
            muse_run(words, synopsis="[" in command)
        elif program == "muse":
            muse_subcommand(words)
        elif program == "python":
            python(words, monkeypatch)
        elif program == "pip":
            pip(words)
        elif program == "tox":
            environment(words)
        else:
            assert program in NOT_RUN, f"{page}: no rule for {program!r} of {command!r} - add one"


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 100
    assert commands_of("a\n\n    muse-run x \\\n        --set a=1\n\n```console\n$ muse doctor\n```\n`muse cost R`") == [
        "muse-run x --set a=1", "muse doctor", "muse cost R",
    ]
    assert inspect.cleandoc(simple("cd a && muse-run RECIPE [--steps N | --extend N]")[0][0]) == "a"
