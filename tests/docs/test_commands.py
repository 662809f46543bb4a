"""Every command that a page shows is called, and every file under recipes/ that a page or nobody names is built.

A command runs as it stands where that takes a moment; a recipe runs dry, a plan lists its runs, a script prints its
help, which has every flag that the page gives it. ``RUN`` and ``runs/NAME`` are a tiny run made once. What cannot run
here is in ``NOT_HERE`` with the reason; a command that no rule knows fails by name.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from muse_core.cli import muse
from muse_core.cli.run import main
from muse_core.recipe import read_recipe

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs/**/*.md", "*.md", "plugins/*/README.md", "kernels/README.md", "examples/*/README.md")
PAGES = [path for pattern in FOLDERS for path in sorted(ROOT.glob(pattern)) if path.name != "CHANGELOG.md"]
COMMAND = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:muse|muse-run|python3?|pip|tox|pytest|mkdocs|torchrun|lm_eval)(?: (?!.*: ).*)?$"
)
NOT_HERE = {
    "pip install": "installs; its files and names are looked for",
    "python -m venv": "makes an environment",
    "tox": "runs all of this; its environments are looked for",
    "pytest": "these tests, or those of a file that is looked for",
    "mkdocs": "needs the packages of the site",
}
"""Beginning of a command → why it is not run."""


def commands(path: Path) -> list[str]:
    """Commands in the blocks of a page, continued lines joined, comments cut off."""
    found: list[str] = []
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = ""
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = "" if fenced else line.strip().removeprefix("```") or "text"
            continue
        if (fenced in ("sh", "bash", "console", "text")) or (not fenced and line.startswith("    ")):
            shown = re.sub(r"\s+# .*", "", line.strip().removeprefix("$ "))
            found += [part.strip() for part in shown.split(" && ") if COMMAND.match(part.strip())]
    return found


SHOWN = [(path, command) for path in PAGES for command in dict.fromkeys(commands(path))]


def test_commands_are_found() -> None:
    assert len(SHOWN) > 60
    assert (ROOT / "README.md", "muse-run recipes/phase2_base.toml") in SHOWN


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of the recipes' language."""
    folder = tmp_path_factory.mktemp("commands")
    recipe = folder / "tiny.toml"
    recipe.write_text(
        'name = "tiny"\nmodel = { width = 16, depth = 1, block = [{ use = "resolvent" }, { use = "fast-weights" }] }\n'
        'train = { steps = 2, batch_size = 2, sequence_length = 64, warmup_steps = 1, precision = "fp32" }\n'
        "evaluate = { tokens = 128, final_tokens = 128 }\n"
    )
    done = CliRunner().invoke(main, [str(recipe), "--run-dir", str(folder / "run")])
    assert done.exit_code == 0, done.output
    return folder / "run"


def filled(words: list[str], run: Path) -> list[str]:
    """Words with a run in place of the placeholders for one."""
    return [re.sub(r"^(runs/[\w-]+|RUN|DIRECTORY|RUN_DIR)(?=$|/)", str(run), word) for word in words]


def said(done: Result) -> str:
    return f"exit code {done.exit_code}: {done.output}\n{done.exception}"


def parsed(command: click.Command, arguments: list[str], optional: list[str]) -> None:
    """Raises UsageError for a command, flag or value that the program does not know, and fails for ``optional`` flags
    that it does not have."""
    context = command.make_context(command.name or "", arguments)
    if isinstance(command, click.Group):
        name, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None and name is not None
        parsed(inner, rest, optional)
        return
    known = {flag for parameter in command.params for flag in parameter.opts}
    assert set(optional) <= known, f"{command.name} has no {set(optional) - known}"


def of_muse_run(arguments: list[str], optional: list[str], run: Path) -> None:
    """Its recipe with these overrides; that recipes run dry as they stand is tested for each."""
    parsed(main, arguments, optional)
    given = main.make_context("muse-run", arguments).params
    recipe = ROOT / str(given["recipe"])
    if recipe.is_file():
        read_recipe(recipe, given["overrides"])
    else:
        assert not str(given["recipe"]).startswith("recipes/"), f"there is no {recipe}"


def of_muse(arguments: list[str], optional: list[str], run: Path) -> None:
    """Called, where that takes a moment; what takes minutes or a GPU has recipes and plans that are there."""
    name = arguments[0]
    parsed(muse, arguments, optional)
    there = [word for word in arguments if word.endswith(".toml") and word.startswith("recipes/")]
    assert all((ROOT / word).is_file() for word in there), f"names {there}"
    if name == "generate":
        arguments = [*arguments, "--tokens", "2"]
    if name in ("diagnose", "generate") or arguments[:2] == ["plugins", "list"]:
        done = CliRunner().invoke(muse, arguments)
        assert done.exit_code == 0, said(done)


def of_python(arguments: list[str], optional: list[str], run: Path) -> None:
    """A script's help has the flags; a file that it is given is there."""
    cut = 2 if arguments[0] == "-m" else 1
    program, rest = arguments[:cut], arguments[cut:]
    shown = subprocess.run(
        [sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert shown.returncode == 0, shown.stderr
    for word in (*rest, *optional):
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word)}\b", shown.stdout), f"{' '.join(program)} has no {word}"
        elif word.startswith("recipes/"):
            assert (ROOT / word).is_file(), f"there is no {word}"


def of_installer(words: list[str]) -> None:
    """The files, folders, packages' extras and environments that a command names are there."""
    projects = {}
    for project in ROOT.glob("**/pyproject.toml"):
        if not {".venv", ".tox"} & set(project.parts):
            text = project.read_text(encoding="utf-8")
            if named := re.search(r'^name = "([\w-]+)"', text, flags=re.MULTILINE):
                projects[named[1]] = text
    for flag, word in zip(words, words[1:]):
        if flag in ("-r", "-c", "-e") and words[0] == "pip" and word != ".":
            assert (ROOT / word).exists(), f"there is no {word}"
    for word in words[1:]:
        if extra := re.fullmatch(r"(muse-[\w-]+)\[(\w+)\]", word):
            assert re.search(rf"^{extra[2]} = \[", projects[extra[1]], flags=re.MULTILINE), f"no extra {word}"
        elif "/" in word and not word.startswith("-") and "=" not in word and word != "kernels":
            assert (ROOT / word).exists(), f"there is no {word}"
    if words[0] == "tox" and "-e" in words:
        factors = set(re.findall(r"[a-z]\w*", (ROOT / "tox.ini").read_text(encoding="utf-8")))
        assert set(words[words.index("-e") + 1].split("-")) - {"py311"} <= factors


RULES: dict[str, Callable[[list[str], list[str], Path], None]] = {
    "muse-run": of_muse_run, "muse": of_muse, "python": of_python, "python3": of_python
}


@pytest.mark.parametrize(
    ("path", "command"), SHOWN, ids=[f"{path.relative_to(ROOT)}: {command[:60]}" for path, command in SHOWN]
)
def test_a_command_of_a_page(path: Path, command: str, run: Path) -> None:
    if command in ("python - <<'END'",):
        pytest.skip("the program below it is run by test_pages")
    bracketed = r" \[(?:--|RUN )[^]]*\]"
    optional = re.findall(r"--[\w-]+", " ".join(re.findall(bracketed, command)))
    words = [word for word in shlex.split(re.sub(bracketed, "", command)) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    if any(" ".join(words).startswith(start) for start in NOT_HERE):
        of_installer(words)
        return
    assert words[0] in RULES, f"{path.name}: no rule says how to test {command!r}"
    RULES[words[0]](filled(words[1:], run), optional, run)


RECIPES = sorted(path for path in (ROOT / "recipes" / "experiments").glob("*.toml") if ".plan." not in path.name)
PLANS = sorted((ROOT / "recipes").glob("**/*.plan.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_an_experiment_builds(path: Path) -> None:
    task = path.stem.startswith("mqar")
    text = [] if task else ["--set", 'data={use="state-of-the-union", tokenizer="bytes"}']
    done = CliRunner().invoke(main, [str(path), "--dry-run", *text])
    assert done.exit_code == 0, said(done)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_lists_its_runs(path: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(muse, ["compare", str(path), "--dry-run", "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, said(done)


def test_recipes_and_plans_that_pages_name_are_there() -> None:
    missing = [
        f"{path.relative_to(ROOT)}: {name}" for path in PAGES
        for name in re.findall(r"\brecipes/[\w/.-]+\.toml", path.read_text(encoding="utf-8"))
        if not (ROOT / name).is_file()
    ]
    assert not missing
