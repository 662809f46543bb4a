"""A stranger installs the project and a plugin of their own from wheels, without an index, and trains with it."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "muse-leaky-average"


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Standard output of a command that succeeds."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_", "MUSE_"))}
    line = [str(part) for part in command]
    ended = subprocess.run(line, cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel of every distribution, those that tox made where it did, and of the example."""
    folder = tmp_path_factory.mktemp("wheels")
    if made := os.environ.get("MUSE_WHEELS"):
        shutil.copytree(made, folder, dirs_exist_ok=True)
    else:
        run(sys.executable, ROOT / ".ci" / "wheels.py", folder, cwd=folder)
    build = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(sys.executable, *build, EXAMPLE, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the project depends on, as links: everything installed here but the project, editable or not."""
    folder = tmp_path_factory.mktemp("dependencies")
    for site in {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}:
        for entry in site.iterdir():
            ours = entry.name.startswith(("muse", "_muse", "__editable__"))
            if not ours and entry.suffix != ".pth" and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory, wheels: Path, others: Path) -> Path:
    """The scripts of an environment into which pip installed the wheels, resolving every dependency without index."""
    place = tmp_path_factory.mktemp("stranger")
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    (site / "dependencies.pth").write_text(f"{others}\n")
    names = [wheel.name.split("-")[0].replace("_", "-") for wheel in wheels.glob("*.whl")]
    assert "muse-leaky-average" in names and "muse-core" in names
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--find-links", wheels)
    run(*pip, *names, cwd=place)
    return place / "bin"


def test_a_wheel_holds_the_files_of_its_package_and_no_other(wheels: Path) -> None:
    """So that what the tests say of the checkout they say of the wheels."""
    for folder in (ROOT, ROOT / "kernels", *(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))):
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        module, name = project["tool"]["flit"]["module"]["name"], project["project"]["name"].replace("-", "_")
        place = folder if (folder / module).is_dir() else folder / "src"
        files = {
            path.relative_to(place).as_posix(): path.read_bytes() for path in (place / module).rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        (wheel,) = wheels.glob(f"{name}-*.whl")
        with zipfile.ZipFile(wheel) as file:
            held = {one: file.read(one) for one in file.namelist() if ".dist-info/" not in one}
        assert held.keys() == files.keys()
        assert [one for one, data in files.items() if held[one] != data] == []


def test_the_installed_core_is_used_and_not_the_checkout(bin_folder: Path, tmp_path: Path) -> None:
    code = "from importlib.util import find_spec as find; print(find('muse_core').origin, find('muse_kernels').origin)"
    for path in run(bin_folder / "python", "-c", code, cwd=tmp_path).split():
        assert Path(path).is_relative_to(bin_folder.parent)


def test_the_plugin_is_listed(bin_folder: Path, tmp_path: Path) -> None:
    listing = json.loads(run(bin_folder / "muse", "plugins", "list", "--json", cwd=tmp_path))
    assert listing["problems"] == []
    found = {row["name"]: row for row in listing["components"]}
    assert found["leaky-average"]["distribution"] == "muse-leaky-average"
    assert found["resolvent"]["path"].startswith(str(bin_folder.parent))


def test_a_new_plugin_is_written_from_the_wheel(bin_folder: Path, tmp_path: Path) -> None:
    run(bin_folder / "muse", "plugins", "new", "wave", "--kind", "layer", cwd=tmp_path)
    assert "muse_layers" in (tmp_path / "muse-wave" / "src" / "muse_wave" / "plugin.py").read_text(encoding="utf-8")


def test_trains_a_few_steps(bin_folder: Path, tmp_path: Path) -> None:
    lines = [f"Paragraph {number} comes after paragraph {number - 1}." for number in range(1, 400)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    recipe = shutil.copy(EXAMPLE / "recipe.toml", tmp_path)  # its text lies beside it
    command = (bin_folder / "muse-run", recipe, "--run-dir", tmp_path / "run")
    run(*command, cwd=tmp_path, MUSE_CACHE=str(tmp_path / "cache"), OMP_NUM_THREADS="1")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 5
    assert 0 < summary["held_out_bits_per_byte"] < math.log2(257)
    assert "muse-leaky-average" in (tmp_path / "run" / "muse.lock.toml").read_text()
