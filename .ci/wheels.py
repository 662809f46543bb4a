"""Builds every distribution of this repository as a wheel: ``python .ci/wheels.py FOLDER [--install]``.

Needs flit_core. With ``--install`` they are installed into the running environment, their dependencies from the index.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def distributions() -> list[Path]:
    """Folders with a pyproject.toml, the core first."""
    return [ROOT, ROOT / "kernels", *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]


def build(folder: Path) -> list[Path]:
    """The wheels, made without an isolated build environment for each, which would take most of the time."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), *map(str, distributions())], check=True)
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
