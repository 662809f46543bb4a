"""S5: a plugin that fails on import, exits, is for another API, clashes or has a raising hook is named by distribution
and entry point; the others work as if it were not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.promise("S5")

ROW = """
import attrs
from muse_core.component import Component
from muse_core.hookspecs import hookimpl

@attrs.frozen(kw_only=True)
class Options:
    '''Options.'''

@hookimpl
def muse_layers():
    yield Component({name!r}, options=Options, implementation="nowhere:Layer")
"""

BROKEN = {
    "importing": ("import no_such_module", "muse.v2", "ModuleNotFoundError"),
    "exiting": ("raise SystemExit(3)", "muse.v2", "SystemExit"),
    "old-api": (ROW.format(name="old"), "muse.v0", "is for hook API 0"),
    "raising": (ROW.format(name="odd") + "    raise KeyError('depth')\n", "muse.v2", "KeyError: 'depth'"),
    "misspelt": (ROW.format(name="odd").replace("muse_layers", "muse_layer"), "muse.v2", "did you mean 'muse_layers'"),
}
SOUND = {"twin-a": ROW.format(name="twin"), "twin-b": ROW.format(name="twin"), "good": ROW.format(name="fine")}


def install(site, name, source, group="muse.v2"):
    module = f"{name.replace('-', '_')}_plugin"
    (site / f"{module}.py").write_text(source)
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: muse-core\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name}-entry = {module}\n")


def muse(site, *arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", "from muse_core.cli import muse; muse()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_each_is_named_and_the_others_work(tmp_path, trial):
    for name, (source, group, _) in BROKEN.items():
        install(tmp_path, name, source, group)
    for name, source in SOUND.items():
        install(tmp_path, name, source)
    listed = muse(tmp_path, "plugins", "list")
    assert listed.returncode == 0 and "Traceback" not in listed.stderr, listed.stderr
    said = listed.stdout + listed.stderr
    for name, (_, _, words) in BROKEN.items():
        told = [line for line in said.splitlines() if f"{name}-entry" in line and f"{name} 1.0" in line]
        assert any(words in line for line in told), said
    found = json.loads(muse(tmp_path, "plugins", "list", "--json").stdout)
    text = json.dumps(found)
    assert '"fine"' in text and text.count('"twin"') >= 2
    recipe = tmp_path / "x.toml"
    recipe.write_text('name = "x"\n[model]\nblock = ["twin"]\n')
    clash = muse(tmp_path, "recipe", "check", str(recipe))
    assert clash.returncode == 2
    assert "twin-a 1.0 and twin-b 1.0 both offer a layer 'twin'" in clash.stdout + clash.stderr
    trial.say(f"{len(BROKEN)} broken distributions named, a clash refused, {len(SOUND)} sound ones listed")
