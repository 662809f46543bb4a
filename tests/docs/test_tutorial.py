"""The tutorial does what it says: its files are written, its plugin installed, its commands run in their order."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from muse_core.testing import warm

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guide" / "first-plugin.md").read_text(encoding="utf-8")
INSTALL = "pip install --no-build-isolation -e ."


def files() -> dict[str, str]:
    """What the page writes: name → text."""
    found = re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, flags=re.DOTALL | re.MULTILINE)
    return dict(found)


def commands() -> list[tuple[str, list[str]]]:
    """Each command with the lines that the page shows of its output."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            else:
                found[-1][1].append(line)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files and, in ``site``, what pip installs of them."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name, text in files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", folder / "site", folder], check=True, timeout=120)
    return folder


DRIVER = """
import json, shlex, sys
from click.testing import CliRunner
from muse_core.cli import muse
from muse_core.cli.run import main
programs = {"muse": muse, "muse-run": main}
found = []
for program, *arguments in map(shlex.split, json.load(sys.stdin)):
    ended = CliRunner().invoke(programs[program], arguments)
    found.append([ended.exit_code, ended.output])
json.dump(found, open("outputs.json", "w"))
"""
"""Runs commands of the project one after the other in one process, since each would import torch again."""


def run(folder: Path, *arguments: str, given: str = "") -> str:
    """Output of Python in the folder, with the plugin installed."""
    environment = os.environ | {
        "PYTHONPATH": str(folder / "site"), "PYTHONDONTWRITEBYTECODE": "1", "MUSE_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    ended = warm.run(
        [sys.executable, *arguments], cwd=folder, env=environment, input=given, capture_output=True, text=True,
        timeout=300, check=False,
    )
    assert ended.returncode == 0, f"{arguments}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def test_the_tests_of_the_page_pass(folder: Path) -> None:
    (line,) = [line for line, _ in commands() if line.startswith("pytest")]
    output = run(folder, "-m", *shlex.split(line), "-p", "no:cacheprovider")
    assert int(re.search(r"(\d+) passed", output)[1]) > 10, output


def test_commands_do_what_the_page_shows(folder: Path) -> None:
    done = [(line, shown) for line, shown in commands() if line.startswith("muse")]
    assert [line for line, _ in commands() if not line.startswith("muse")] == [INSTALL, "pytest -q"]
    run(folder, "-c", DRIVER, given=json.dumps([line for line, _ in done]))
    outputs = json.loads((folder / "outputs.json").read_text())
    assert len(outputs) == len(done) > 4
    for (line, shown), (code, output) in zip(done, outputs):
        assert code == (2 if "strenght" in line else 0), f"{line}\n{output}"
        for expected in shown:
            assert expected in output, f"{line} prints\n{output}"
    summaries = [json.loads((folder / "runs" / name / "summary.json").read_text()) for name in ("with", "without")]
    assert [summary["steps"] for summary in summaries] == [20, 20]
    heads = int(re.search(r"heads = (\d+)", files()["recipe.toml"])[1])
    depth = int(re.search(r"depth = (\d+)", files()["recipe.toml"])[1])
    assert summaries[0]["parameters"] - summaries[1]["parameters"] == 2 * heads * depth
