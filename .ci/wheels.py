"""Builds every distribution of this repository as a wheel: ``python .ci/wheels.py FOLDER [--install]``.

Needs flit_core. With ``--install`` they are installed into the running environment, their dependencies from the index.
"""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def distributions() -> list[Path]:
    """Folders with a pyproject.toml, the core first."""
    return [ROOT, ROOT / "kernels", *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]


def build(folder: Path, hook: str = "build_wheel") -> list[Path]:
    """The wheels, as pip asks a build backend for them by ``build_wheel`` or ``build_editable``, and all in this
    process: pip starts several for each, which takes most of the time."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    for distribution in distributions():
        system = tomllib.loads((distribution / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
        backend = importlib.import_module(system["build-backend"])
        with contextlib.chdir(distribution):
            getattr(backend, hook)(str(folder))
    return sorted(folder.glob("*.whl"))


def main() -> None:
    wheels = build(Path(sys.argv[1]))
    assert len(wheels) == len(distributions()), wheels
    if "--install" in sys.argv[2:]:
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        # By force, since the version does not change between two runs of tox: pip would keep yesterday's files.
        subprocess.run([*pip, "--force-reinstall", "--no-deps", "--no-index", *map(str, wheels)], check=True)
        subprocess.run([*pip, *map(str, wheels)], check=True)  # what they need


if __name__ == "__main__":
    main()
