"""What the pages show works. Every command is known to the program that it calls, names what exists, and is executed
where that takes seconds; one that no rule below covers fails by its name. Recipes and plans are read, Python runs."""

from __future__ import annotations

import argparse
import ast
import contextlib
import doctest
import inspect
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from muse_core.cli import muse
from muse_core.cli.run import main
from muse_core.plugins.discovery import GROUP
from muse_core.recipe import read_recipe
from tests.commands import bundled_text, called, without_random_values

ROOT = Path(__file__).parents[2]
FOLDERS = ("*.md", "kernels/README.md", "docs/**/*.md", "plugins/*/README.md", "examples/*/README.md")
PAGES = [path for pattern in FOLDERS for path in sorted(ROOT.glob(pattern)) if path.name != "CHANGELOG.md"]
PAGES_ELSEWHERE = {"docs/guide/first-plugin.md": "test_tutorial.py executes the page in its order"}
COMMANDS_ELSEWHERE = {
    "muse-run muse-wave/recipe.toml": "tests/authors/test_new_plugins.py runs what muse plugins new writes",
    "muse selftest --long --only NAME --seed SEED": "the promises are tests of their own",
    "muse-run … | head": "tests/cli/test_lifecycle.py closes the pipe",
    "muse-run recipe.toml --set 'telemetry.sinks=[\"trackio\"]'": "plugins/trackers tests it with the library",
    "muse plugins show leaky-average": "tests/test_third_party.py installs the example",
}
PROGRAMS = "muse|muse-run|python3?|pip|tox|pytest|ruff|mkdocs|tensorboard|torchrun|bash|sh|git|curl|uv|conda|docker"
COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:cd \S+ && )?(?:{PROGRAMS})(?= |$)")
CODE = re.compile(r"^```[^\n]*\n(.*?)^```$|((?:^ {4}[^\n]*\n|^\n(?= {4}))+)", flags=re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)`((?:muse|muse-run) [^`]+)`(?!`)")
TINY = [
    "data.tokenizer=bytes", "model.depth=1", "model.width=32", "train.steps=2", "train.batch_size=2",
    "train.sequence_length=96", "train.micro_batch=2", "train.warmup_steps=1", "train.device=cpu",
    "evaluate.tokens=512", "evaluate.final_tokens=512", "evaluate.every=2", "model.block[0].heads=4", "monitors=[]",
    "initializers=[]",
]
FRESH = ["--set", "init.from="]
SLOW = {
    "gates": "takes minutes; tests/exit_gates executes it",
    "lm-eval": "needs lm-evaluation-harness; tests/evaluation/test_harness.py executes it",
    "bench": "needs a GPU; tests/cli/test_bench.py executes it",
    "compress": "takes a minute; plugins/koopman/tests/test_runs.py executes it",
    "import": "needs weights of another program; tests/interchange/test_weights.py executes it",
    "selftest": "the promises are tests of their own",
}
NOT_RUN = {
    "tox": "makes an environment; tests/test_tox.py asks it for its configuration",
    "pytest": "tests of these folders run anyway",
    "ruff": "needs no test: it is an environment of tox",
    "tensorboard": "of others",
    ".": "begins an environment, which these tests run in",
    "pip": "needs a network; tests/test_third_party.py installs every distribution",
}
PLACEHOLDERS = {
    "RECIPE": "recipes/phase2_base.toml", "RECIPE…": "recipes/phase2_base.toml", "FILE": "recipes/phase2_base.toml",
    "PLAN": "recipes/experiments/mqar.plan.toml", "PLAN.toml": "recipes/experiments/mqar.plan.toml",
    "recipe.toml": "recipes/phase2_base.toml", "NAME": "fast-weights", "NAME|PATH": "fast-weights",
    "a.b=c": "train.steps=2", "cpu|cuda|cuda:1": "cpu", "DEVICE": "cpu",
    "N": "4", "S": "1", "SEED": "1", "seed=S": "seed=1", "NATS": "0.3", "KIND": "layer",
}


def commands_of(text: str) -> list[str]:
    """Commands in blocks of code, lines joined at a backslash, and in spans of the text."""
    found = []
    text = re.sub(r"^```text\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)  # a drawing
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
    for path in PAGES if path.relative_to(ROOT).as_posix() not in PAGES_ELSEWHERE
    for command in dict.fromkeys(commands_of(path.read_text(encoding="utf-8"))) if command not in COMMANDS_ELSEWHERE
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
            found.append((folder, words[: words.index("<")] if "<" in words else words))
    return found


@pytest.fixture(scope="session")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which runs/NAME is a run of two steps."""
    folder = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUSE_CACHE", str(cache))
        make_run(folder)
        yield folder


def make_run(folder: Path) -> None:
    arguments = [str(ROOT / "recipes" / "phase2_base.toml"), "--run-dir", str(folder / "runs" / "NAME")]
    call(main, [*arguments, *(word for one in TINY for word in ("--set", one))])


@pytest.fixture
def here(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files of the repository that commands name, and a run."""
    for name in ("recipes", "plugins", "tests", "kernels", "examples", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(run / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(command: click.Command, arguments: list[str]) -> str:
    ended = called(command, *arguments)
    assert ended.exit_code == 0, f"{command.name} {shlex.join(arguments)}\n{ended.output}\n{ended.exception!r}"
    return ended.output


def parsed(command: click.Command, name: str, arguments: list[str]) -> bool:
    """Whether the command can be called: text also has "`muse cost` measures" and "`muse-run --resume` goes on". Raises
    click.UsageError for an option or a subcommand that does not exist, or a value that it does not take."""
    context = click.Context(command, info_name=name)
    whole = list(arguments)
    while isinstance(command, click.Group):
        assert arguments, f"{name} without a subcommand"
        found = command.get_command(context, arguments[0])
        assert found is not None, f"{name} has no subcommand {arguments[0]}"
        command, name, arguments = found, f"{name} {arguments[0]}", arguments[1:]
    if not arguments and whole:
        return False
    option_alone = arguments and re.fullmatch(r"--[\w-]+", arguments[-1])
    with contextlib.suppress(click.exceptions.Exit, *((click.MissingParameter,) if option_alone else ())):
        try:
            command.make_context(name, list(arguments))
        except click.BadOptionUsage as error:
            if isinstance(error, click.NoSuchOption) or not option_alone:
                raise
            return False
        return True
    return False


def with_placeholders(words: list[str]) -> list[str]:
    """Words with the run in place of any other, and a recipe that exists in place of RECIPE."""
    own = re.compile(r"^(?:runs/(?!NAME-again)[\w.-]+|DIRECTORY|RUN|run(?=/))(?=/|$)")
    return [own.sub("runs/NAME", PLACEHOLDERS.get(word, word)) for word in words]


def files_exist(words: list[str]) -> None:
    for word in words:
        if re.match(r"(?:recipes|plugins|tests|kernels|examples)/", word) and "=" not in word:
            assert Path(word).exists(), f"{word} does not exist"


def muse_run(words: list[str], synopsis: bool) -> None:
    if not parsed(main, "muse-run", words):
        return
    if all(word.startswith("-") for word in words):  # a flag alone
        return
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
    shown = call(main, ["--dry-run", *(word for word in words if word != "--dry-run")])
    assert "dry run: no run was begun" in shown


def muse_subcommand(words: list[str]) -> None:
    name = words[0]
    if not parsed(muse, "muse", words) or name in SLOW or {"--serve", "--prompt-file"} & {*words}:
        return  # slow, serves until it is stopped, or reads a file of the reader
    words = list(dict.fromkeys(words)) if name == "report" else words
    if name == "compare":
        if Path(words[1]).is_file():  # the plan of a page is tested where the page writes it
            with without_random_values():
                call(muse, [*words, "--dry-run", *bundled_text(Path(words[1]))])
        return
    if name == "cost":
        targets = [word for word in words[1:] if re.match(r"(?:recipes|runs|phase2|transformer)", word)]
        small = ["--length", "32", "--tokens", "32", "--repeats", "1", "--device", "cpu", "--vocabulary", "16"]
        runs = any(target.startswith("runs/") for target in targets)
        small += [] if runs else ["--set", "model.width=96"]
        whole = runs or any(" at = " in Path(target).read_text("utf-8") for target in targets)
        small += [] if whole else ["--set", "model.depth=1"]
        call(muse, ["cost", *targets, *small, *(["--reach", "32"] if "--reach" in words else [])])
        return
    if name == "eval":
        words = [word.replace("book.txt", "plugins/mqar/README.md") for word in words] + ["--tokens=512", "--samples=1"]
        words = ["192" if before == "--length" else word for before, word in zip(["", *words], words)]  # twice 96
    words = [*words, *(["--length", "4"] if name == "export" and "torch" in words else [])]  # traced token by token
    if words[:2] != ["plugins", "check"]:  # the conformance tests are these checks
        call(muse, words)


def python(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A script or module reads the arguments that the page gives, with its own parser, and stops there."""
    if words[:2] in (["-m", "venv"], ["-m", "http.server"]) or words[0] == "-":
        return  # modules of Python, and what test_python_of_a_page executes
    class Parsed(Exception):
        pass
    read = argparse.ArgumentParser.parse_args
    def stop(parser: argparse.ArgumentParser, *arguments: object, **keywords: object) -> None:
        read(parser, *arguments, **keywords)
        raise Parsed
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", words[1:] if words[0] == "-m" else words)
    monkeypatch.setattr(sys, "path", [str(Path(words[0]).resolve().parent), *sys.path])  # as python does
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
        assert f"[testenv:{name}]" in text or re.fullmatch(r"py(3\d\d)?(-torch)?(-triton)?", name), name


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_a_command_of_a_page(
    page: str, command: str, here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, (program, *words) in simple(command):
        monkeypatch.chdir(here / folder)
        words = [word for word in with_placeholders(words) if "…" not in word]
        if folder == ".":
            files_exist(words)
        if program in ("muse-run", "torchrun"):  # torchrun --nproc-per-node N -m muse_core.cli.run
            muse_run(words[4 * (program == "torchrun"):], synopsis="[" in command)
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
    shown = " ".join(command for _, command in COMMANDS)
    assert [plan.name for plan in ROOT.glob("recipes/**/*.plan.toml") if plan.name not in shown] == []
    for page in PAGES:
        for name in re.findall(r"\brecipes/[\w/.-]+\.(?:toml|py)", page.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{page}: {name} does not exist"
    page = "a\n\n    muse-run x \\\n        --set a=1\n\n```console\n$ muse doctor\n```\n`muse cost R`"
    assert commands_of(page) == ["muse-run x --set a=1", "muse doctor", "muse cost R"]
    assert simple("cd a && muse-run R [--steps N | --restart] # x") == [("a", "muse-run R --steps N --restart".split())]


BASE = 'format = 2\nname = "page"\n'
FRAGMENTS = {
    "class Fast:": "test_how_tos.py executes it",
    "import json": "test_how_tos.py executes it",
    '"""Mixes each token': "tests/test_readme.py installs it",
    '"""The layer ``shift``': "tests/test_readme.py installs it",
    "from muse_core.testing import LayerSuite\n": "tests/test_readme.py executes it",
    "self.router = context.build(": "muse_scattering_router.experts has it, and its tests execute it",
    "import muse_core\n": "tests/docs/test_notebooks.py does the same",
    "from transformers import": "tests/interchange/test_hugging_face.py does the same",
    'self.kernel = context.kernels.bind("': "muse_fast_weights.layer has it, and its tests execute it",
}
SMALLER = {"(0, 1, 2)": "(0,)", '("apart", "together")': '("apart",)', "phase2_512x6": "phase2_base", "(100)": "(1)"}
PYTHON = r"import |from |class |def |@|self\.|\w+(\(|: | = )|\"\"\""
PRELUDE = """import attrs, torch
from attrs import field, validators
from muse_core.component import Component
class LeakyAverageOptions: pass\n"""


def code_of(text: str) -> Iterator[tuple[str, str]]:
    """Blocks that are TOML or Python, by their form: fences of recipes often name no language."""
    for match in CODE.finditer(text):
        block = inspect.cleandoc(match[1] or match[2])
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
        heredoc = re.match(r"python - <<'END'\n(.*)\nEND$", block, flags=re.DOTALL)
        if heredoc:
            yield "python", inspect.cleandoc(heredoc[1])
        elif len(lines) > 1 and all(re.match(r"(data|initializers) = ", line) for line in lines):
            yield from (("toml", line) for line in lines)
        elif re.match(r"(?:[\w.-]+ = |\[)", lines[0]) and _reads(tomllib.loads, block):
            yield "toml", block
        elif block.startswith(">>> "):
            yield "doctest", block
        elif re.match(PYTHON, lines[0]) and _reads(ast.parse, block):
            yield "python", block


def _reads(reader: Callable[[str], object], text: str) -> bool:
    try:
        reader(text)
    except (SyntaxError, tomllib.TOMLDecodeError):
        return False
    return True


BLOCKS = [
    (path.relative_to(ROOT).as_posix(), language, block)
    for path in PAGES if path.relative_to(ROOT).as_posix() not in PAGES_ELSEWHERE
    for language, block in code_of(path.read_text(encoding="utf-8"))
]


def some(language: str) -> list:
    found = [(page, block) for page, form, block in BLOCKS if form == language]
    return [pytest.param(page, block, id=f"{page}: {block.splitlines()[0]}") for page, block in found]


@pytest.mark.parametrize(("page", "block"), some("toml"))
def test_a_recipe_or_a_plan_of_a_page(page: str, block: str, here: Path) -> None:
    """What a page writes is a recipe, a part of one, a plan, or the metadata of a plugin, and is accepted."""
    table = tomllib.loads(block)
    file = here / "page.toml"
    if "project" in table:
        assert list(table["project"]["entry-points"]) == [GROUP]
    elif "arms" in table:
        file.write_text(block)
        assert "to begin" in call(muse, ["compare", str(file), "--dry-run"])
    else:
        if "use" in table:
            table, block = {"model": {"block": [table]}}, "[[model.block]]\n" + block
        text = block if "name" in table else BASE + block
        if "name" not in table:  # a part of a recipe, which may have layers at the first depth alone
            text += '\n[[model.block]]\nuse = "feed-forward"\nname = "last"\n'
        file.write_text(text)
        read_recipe(file, ["model.width=192"])


@pytest.mark.parametrize(("page", "block"), some("python"))
def test_python_of_a_page(page: str, block: str, here: Path) -> None:
    for long, short in SMALLER.items():
        block = block.replace(long, short)
    if not any(block.startswith(first) for first in FRAGMENTS):
        exec(compile(PRELUDE + block, page, "exec"), {"__name__": "page"})


@pytest.mark.parametrize(("page", "block"), some("doctest"))
def test_an_example_prints_what_the_page_shows(page: str, block: str) -> None:
    example = doctest.DocTestParser().get_doctest(block, {}, page, page, 0)
    assert block.startswith(">>> import muse_core\n") or doctest.DocTestRunner().run(example).failed == 0  # FRAGMENTS


def test_blocks_are_found() -> None:
    assert [len(some(language)) for language in ("toml", "python", "doctest")] >= [30, 10, 1]
    assert all(any(block.startswith(first) for _, _, block in BLOCKS) for first in FRAGMENTS)
    assert any("arms = [" in block for _, _, block in BLOCKS)
