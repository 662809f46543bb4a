"""How tox installs what an environment needs: ``python .ci/install.py ARGUMENTS``, those of ``pip install``.

Given ``-r requirements.txt``, the project comes first and is built without an environment of its own for each of its
distributions, which would take three quarters of their time; pip checks that what they need to be built is there.
Anything else, such as a plugin from elsewhere, is installed as pip does it.
"""

from __future__ import annotations

import subprocess
import sys

OWN = ["-r", "requirements.txt"]
BACKEND = "flit_core"


def main() -> int:
    rest, pip = sys.argv[1:], [sys.executable, "-I", "-m", "pip", "install"]
    steps = [rest]
    at = next((at for at in range(len(rest)) if rest[at : at + 2] == OWN), None)
    if at is not None:
        del rest[at : at + 2]
        steps = [[BACKEND], ["--no-build-isolation", "--check-build-dependencies", *OWN], rest]
    return next((code for step in steps if step and (code := subprocess.run([*pip, *step]).returncode)), 0)


if __name__ == "__main__":
    sys.exit(main())
