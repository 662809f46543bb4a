"""What the files beside the code promise: requirements, metadata, no trace of one machine, files of a readable size."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from muse_core.plugins.discovery import GROUP, normalised

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = [ROOT, ROOT / "kernels", *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def tracked() -> list[Path]:
    """Text files under version control; of an unpacked archive, all of them."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in listing.split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not {".tox", ".venv", "__pycache__"} & set(path.parts)]
    text = {".py", ".md", ".toml", ".txt", ".ini", ".cfg", ".yml", ".yaml", ".json", ".sh", ".svg", ""}
    return [path for path in paths if path.is_file() and path.suffix in text]


def test_requirements_install_every_distribution_of_the_repository() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    editables = [line.removeprefix("-e ") for line in lines if line.startswith("-e ")]
    assert editables == [str(folder.relative_to(ROOT)) for folder in DISTRIBUTIONS]
    assert "-c constraints.txt" in lines


def test_torch_is_pinned_where_plain_ranges_would_fetch_another() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert {"torch==2.13.0", "triton==3.7.1", "mpmath==1.3.0"} <= set(pins)
    assert all("==" in pin for pin in pins if pin and not pin.startswith("#"))


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=lambda folder: folder.name)
def test_metadata_of_a_distribution(folder: Path) -> None:
    stated = project(folder)
    assert stated["license"].split(" AND ")[0] == "Apache-2.0"
    assert stated["requires-python"] == ">=3.11"
    assert (folder / stated["readme"]).read_text(encoding="utf-8").strip()
    if folder.parent.name == "plugins":
        module = "muse_" + folder.name.replace("-", "_")
        assert stated["name"] == f"muse-{folder.name}"
        assert stated["entry-points"][GROUP] == {folder.name: f"{module}.plugin"}
        assert "muse-core>=0.2,<0.3" in stated["dependencies"]
        assert list((folder / "tests").glob("test_*.py")), "a plugin has tests of its own"


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=lambda folder: folder.name)
def test_installed_metadata_is_that_of_the_files(folder: Path) -> None:
    """An editable's entry points are copied when it is installed; pip does not notice a later change."""
    stated = project(folder)
    installed = metadata.distribution(stated["name"])
    groups = dict(stated.get("entry-points", {}))
    if stated.get("scripts"):
        groups["console_scripts"] = stated["scripts"]
    expected = {(group, name, value) for group, entries in groups.items() for name, value in entries.items()}
    found = {(entry.group, entry.name, entry.value) for entry in installed.entry_points}
    assert found == expected, f"install {stated['name']} again"
    assert installed.version == stated["version"]
    requires = {line.replace(" ", "") for line in installed.requires or [] if "extra" not in line}
    stated_names = {normalised(re.split(r"[<>=~!;\[ ]", line)[0]) for line in stated["dependencies"]}
    assert {normalised(re.split(r"[<>=~!;\[]", line)[0]) for line in requires} == stated_names


def test_no_file_names_a_machine_or_a_private_index() -> None:
    home = r"(?<![\w.])/(?:root|home/(?!someone)\w+|Users/\w+|work)/\w"
    index = r"--(?:extra-)?index-url|--find-links https?:|\bfile:///(?!\w+\.)"
    own = Path(__file__)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked() if path != own
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if re.search(f"{home}|{index}", line)
    ]
    assert found == []


def test_source_files_are_short_enough_to_read() -> None:
    lengths = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for path in tracked() if path.suffix == ".py"
    }
    assert {str(path): length for path, length in lengths.items() if length > 400} == {}
    ordered = sorted(lengths.values())
    assert ordered[len(ordered) // 2] < 200
