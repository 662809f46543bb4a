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


def run(line: str, folder: Path) -> str:
    """Output of a command in the folder, with the plugin installed; where the page shows an error it may fail."""
    arguments = shlex.split(line)
    modules = {"muse": "muse_core.cli:muse", "muse-run": "muse_core.cli.run:main"}
    if arguments[0] in modules:
        module, _, function = modules[arguments[0]].partition(":")
        code = f"import sys; from {module} import {function}; sys.argv[0] = {arguments[0]!r}; {function}()"
        program = [sys.executable, "-c", code]
    else:
        program = [sys.executable, "-m", arguments[0], "-p", "no:cacheprovider"]
    environment = os.environ | {
        "PYTHONPATH": str(folder / "site"), "PYTHONDONTWRITEBYTECODE": "1", "MUSE_CACHE": str(folder / "cache"),
        "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        [*program, *arguments[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    wrong = "no option" in ended.stderr
    assert ended.returncode == (2 if wrong else 0), f"{line}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout + ended.stderr


def test_commands_do_what_the_page_shows(folder: Path) -> None:
    done = commands()
    assert done[0][0] == INSTALL and len(done) > 5
    for line, shown in done[1:]:
        output = run(line, folder)
        for expected in shown:
            assert expected in output, f"{line} prints\n{output}"
        if line.startswith("pytest"):
            assert int(re.search(r"(\d+) passed", output)[1]) > 10, output
    summaries = [json.loads((folder / "runs" / name / "summary.json").read_text()) for name in ("with", "without")]
    assert [summary["steps"] for summary in summaries] == [20, 20]
    heads = int(re.search(r"heads = (\d+)", files()["recipe.toml"])[1])
    depth = int(re.search(r"depth = (\d+)", files()["recipe.toml"])[1])
    assert summaries[0]["parameters"] - summaries[1]["parameters"] == 2 * heads * depth
