"""Plugins that are broken in every way stand beside a run that does not use them, and name themselves in one that does.

Real distributions in a folder, and commands in processes of their own.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest

HEAD = """
import attrs
from muse_core.component import Component
from muse_core.hookspecs import hookimpl

@attrs.frozen(kw_only=True)
class Options:
    '''Nothing to choose.'''
"""

ROW = """
@hookimpl
def {hook}({parameters}):
    yield Component("{name}", options=Options, implementation="{module}_implementation:Broken")
"""

LAYER = """
import torch

class Broken(torch.nn.Module):
    def __init__(self, options, context):
        super().__init__()
        {build}

    def forward(self, x, {state}, signals, tokens):
        {forward}
"""

MONITOR = """
class Broken:
    def __init__(self, options, context):
        pass

    def measure(self, moment, values):
        {measure}

    def judge(self, step, floats):
        {judge}

    def wants_probe(self, step, floats):
        return True

    def probe(self, model):
        raise OSError("no needle")

    def state_dict(self):
        return {{}}

    def load_state_dict(self, state):
        pass
"""


def layer(build="pass", state="state", forward="raise KeyError('depth')"):
    """A layer's module."""
    return LAYER.format(build=build, state=state, forward=forward)


def monitor(measure="return {}", judge="from muse_core.contracts import Verdict; return Verdict()"):
    """A monitor's module."""
    return MONITOR.format(measure=measure, judge=judge)


SILENT = "import-error, misspelt-hook, other-api, other-core, system-exit, wrong-hook did not load (muse plugins list)"

NEIGHBOURS: dict[str, tuple[str, str, str, int, str]] = {
    "import-error": ("import nothing_of_that_name", "", "layer", 2, SILENT),
    "system-exit": ("raise SystemExit('good night')", "", "layer", 2, SILENT),
    "other-api": (HEAD + ROW, layer(), "layer", 2, SILENT),
    "other-core": (HEAD + ROW, layer(), "layer", 2, SILENT),
    "misspelt-hook": (HEAD + ROW.replace("{hook}", "muse_layer"), layer(), "layer", 2, SILENT),
    "wrong-hook": (HEAD + ROW.replace("{parameters}", "config"), layer(), "layer", 2, SILENT),
    "attention": (HEAD + ROW, layer(), "layer", 2,
                  "attention 1.0 and muse-baseline 0.2.0 both offer a layer 'attention' - write use = "
                  "'attention@attention' or 'attention@muse-baseline'"),
    "wrong-signature": (HEAD + ROW, layer(state="memory"), "layer", 5,
                        "model.block[0]: layer 'wrong-signature' of wrong-signature 1.0 does not keep the contract: "
                        "Broken.forward: parameter 2 is 'memory' where the contract has 'state' "
                        "(x, state, signals, tokens)"),
    "raises-in-build": (HEAD + ROW, layer(build="raise KeyError('gain')"), "layer", 5,
                        "model.block[0]: layer 'raises-in-build' of raises-in-build 1.0 failed to build: "
                        "KeyError: 'gain'"),
    "no-implementation": (HEAD + ROW, "", "layer", 5,
                          "model.block[0]: layer 'no-implementation' of no-implementation 1.0 cannot be imported"),
    "raises-in-forward": (HEAD + ROW, layer(), "layer", 5,
                          "blocks.0.raises-in-forward: layer 'raises-in-forward' of raises-in-forward 1.0: KeyError: "),
    "raises-in-measure": (HEAD + ROW, monitor(measure="raise OSError('no scale')"), "safety monitor", 5,
                          "monitor 'raises-in-measure' of raises-in-measure 1.0 raised in measure: OSError: no scale"),
    "raises-in-judge": (HEAD + ROW, monitor(judge="raise OSError('no law')"), "safety monitor", 5,
                        "monitor 'raises-in-judge' of raises-in-judge 1.0 raised in judge: OSError: no law"),
    "slow-import": ("import time; time.sleep(1.1)\n" + HEAD + ROW, layer(build="raise OSError('at last')"), "layer", 5,
                    "layer 'slow-import' of slow-import 1.0 failed to build: OSError: at last"),
}
"""Name of distribution and component → plugin module, implementation, kind, exit code of a run that uses it, what that
run says."""

RECIPE = """
format = 1
name = "neighbours"
data = {{ use = "files", paths = ["text.txt"], documents = "paragraph" }}
{monitors}

[model]
width = 8
depth = 1
block = [{block}]

[train]
steps = 2
batch_size = 2
sequence_length = 16
warmup_steps = 1

[evaluate]
tokens = 64
final_tokens = 64
"""

DRIVER = """
import json, sys, traceback
from click.testing import CliRunner
from muse_core.cli import muse
from muse_core.cli.run import main
found = []
for program, *arguments in json.load(sys.stdin):
    ended = CliRunner().invoke({"muse": muse, "muse-run": main}[program], arguments)
    fault = "" if ended.exit_code != 1 else "".join(traceback.format_exception(*ended.exc_info))
    found.append([ended.exit_code, ended.stdout, ended.stderr + fault])
json.dump(found, open("outputs.json", "w"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them installed in ``site``, a recipe that uses none, and one that uses each."""
    folder = tmp_path_factory.mktemp("neighbours")
    site = folder / "site"
    site.mkdir()
    for name, (plugin, implementation, kind, _, _) in NEIGHBOURS.items():
        module = name.replace("-", "_") + "_neighbour"
        hook = "muse_" + kind.replace(" ", "_") + "s"
        filled = plugin.replace("{hook}", hook).replace("{parameters}", "").replace("{name}", name)
        (site / f"{module}.py").write_text(textwrap.dedent(filled.replace("{module}", module)))
        if implementation:
            (site / f"{module}_implementation.py").write_text(implementation)
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        core = "muse-core>=9,<10" if name == "other-core" else "muse-core>=0.2,<0.3"
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: {core}\n")
        group = "muse.v3" if name == "other-api" else "muse.v2"
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
        block = f'{{ use = "{name}" }}' if kind == "layer" else '{ use = "feed-forward" }'
        monitors = f'monitors = ["{name}"]' if kind == "safety monitor" else ""
        (folder / f"{name}.toml").write_text(RECIPE.format(block=block, monitors=monitors))
    (folder / "none.toml").write_text(RECIPE.format(block='{ use = "feed-forward" }', monitors=""))
    (folder / "text.txt").write_text("\n\n".join(f"Paragraph {number} of the text." for number in range(400)))
    return folder


@pytest.fixture(scope="module")
def outputs(folder: Path, python) -> dict[str, tuple[int, str, str]]:
    """Exit code, output and errors of each command, by its name here."""
    # The doctor comes first: it times imports, and there is only one of each in a process.
    commands = {"doctor": ["muse", "doctor", "--json"], "list": ["muse", "plugins", "list", "--json"]}
    commands |= {name: ["muse-run", f"{name}.toml", "--run-dir", f"runs/{name}"] for name in ("none", *NEIGHBOURS)}
    ended = python("-c", DRIVER, cwd=folder, site=folder / "site", given=json.dumps(list(commands.values())))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return dict(zip(commands, json.loads((folder / "outputs.json").read_text())))


def test_a_run_that_uses_none_of_them_does_not_notice(outputs, folder) -> None:
    code, printed, said = outputs["none"]
    assert code == 0, printed + said
    assert json.loads((folder / "runs" / "none" / "summary.json").read_text())["steps"] == 2
    for name in NEIGHBOURS:
        assert printed.count(f"plugin {name} 1.0") == (name in PROBLEMS), printed


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_run_that_uses_one_says_which_and_why(outputs, name) -> None:
    *_, expected_code, sentence = NEIGHBOURS[name]
    code, printed, said = outputs[name]
    assert code == expected_code, printed + said
    assert sentence in said
    assert "offers a layer 'attention'" not in printed + said, "names are clear in a recipe that is read"
    assert ("Traceback" in said) == (expected_code == 1)
    if name.startswith(("raises", "slow")) and expected_code == 5:
        assert re.search(r": \w+: '?[\w ]+'? at \S+_implementation\.py:\d+$", said, re.MULTILINE), said
    if expected_code == 2:
        assert said.startswith(f"{name}.toml:10: model.block[0]")


PROBLEMS = {
    "import-error": "importing its module raised ModuleNotFoundError: No module named 'nothing_of_that_name' at ",
    "system-exit": "importing its module raised SystemExit: good night at ",
    "other-api": r"is for hook API 3; muse-core \S+ offers API 2",
    "other-core": r"needs muse-core>=9,<10; this is muse-core",
    "misspelt-hook": "muse_layer is not a hook of muse",
    "wrong-hook": "has a hook with wrong parameters",
}


def test_the_listing_names_each_in_one_line(outputs) -> None:
    code, printed, _ = outputs["list"]
    assert code == 0
    listing = json.loads(printed)
    problems = {problem["distribution"]: problem for problem in listing["problems"]}
    clash = problems.pop("muse-baseline")
    assert clash["what"] == "offers a layer 'attention' like attention 1.0"
    assert problems.keys() == PROBLEMS.keys()
    for name, problem in problems.items():
        assert re.match(PROBLEMS[name], problem["what"]), problem
        assert problem["entry_point"] == name and "\n" not in problem["what"]
    assert {"raises-in-build", "wrong-signature", "slow-import"} <= {row["name"] for row in listing["components"]}


def test_the_doctor_names_the_slow_one(outputs) -> None:
    code, printed, _ = outputs["doctor"]
    assert code == 0
    (line,) = json.loads(printed)["slow"]
    assert re.match(r"slow-import 1\.0 \(slow-import\): its import took \d\.\d s - import heavy modules where", line)
