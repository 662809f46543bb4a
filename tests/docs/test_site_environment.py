"""The environment ``docs`` of tox has what the site's pages need: it installs MUSE without what MUSE depends on."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
sys.path[:0] = ["docs"]
before = set(sys.modules)
import writers
writers.generated_pages()
files = {name.partition(".")[0] for name in set(sys.modules) - before if getattr(sys.modules[name], "__file__", None)}
print(json.dumps(sorted(files - sys.stdlib_module_names)))
"""


def declared() -> set[str]:
    """Distributions of the environment, with what they need."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    found: set[str] = set()
    todo = [line for line in config["testenv:docs"]["deps"].split("\n") if line and not line.startswith("-r")]
    while todo:
        requirement = Requirement(todo.pop())
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        try:
            todo += importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # as flit_core, where the tests do not build
            continue
    return found - {""}


def test_what_the_pages_import_is_there() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    owners = importlib.metadata.packages_distributions()
    modules = json.loads(ended.stdout.splitlines()[-1])
    imported = {canonicalize_name(owner) for module in modules for owner in owners.get(module, ())}
    assert {"attrs", "click"} <= imported
    assert {name for name in imported if not name.startswith("muse-")} <= declared()
