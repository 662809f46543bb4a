"""How tox installs what an environment needs: ``python .ci/install.py ARGUMENTS``, those of ``pip install``.

Given ``-r requirements.txt``, the project is built as editable wheels in this process, where pip starts three for each
distribution, and is installed together with the rest, which pip resolves once. Anything else, such as a plugin from
elsewhere, is installed as pip does it.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

OWN = ["-r", "requirements.txt"]
BACKEND = "flit_core"


def install(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-I", "-m", "pip", "install", *arguments]).returncode


def others() -> list[str]:
    """What requirements.txt asks for beside the project, as arguments."""
    stated = [line.partition(" #")[0].strip() for line in Path(OWN[1]).read_text(encoding="utf-8").splitlines()]
    return [word for line in stated if not line.startswith(("-e ", "#")) for word in line.split()]


def main() -> int:
    rest = sys.argv[1:]
    at = next((at for at in range(len(rest)) if rest[at : at + 2] == OWN), None)
    if at is None:
        return install(*rest)
    del rest[at : at + 2]
    if code := install(BACKEND):
        return code
    importlib.invalidate_caches()
    from wheels import build

    with tempfile.TemporaryDirectory() as folder:
        return install(*map(str, build(Path(folder), "build_editable")), *others(), *rest)


if __name__ == "__main__":
    sys.exit(main())
