"""What ``muse plugins new`` writes passes the conformance suite, installs, passes its own tests and trains, for every
kind; all in one environment."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner

from muse_core.cli import muse
from muse_core.kinds import KINDS
from muse_core.scaffold import TEMPLATES, class_name, rendered

TOGETHER = """
format = 1
name = "together"
data = { use = "our-source", tokenizer = "our-tokenizer" }
train = { optimizer = "our-optimizer", schedule = "our-schedule" }
telemetry = { sinks = ["our-sink"] }
kernels = { backend = ["our-kernel-backend", "torch"] }
stages = ["our-stage"]
monitors = ["our-safety-monitor"]
initializers = [{ use = "our-initializer", match = "blocks.*.feed-forward.*.weight" }]

[model]
width = 32
depth = 1
block = [
    { use = "our-layer" },
    { use = "resolvent", heads = 4, apply = false, potential = ["our-potential"] },
    { use = "fast-weights", heads = 2, period = 16, filters = ["our-filter"] },
    { use = "our-memory-layer", heads = 2 },
    { use = "our-router-experts", router = "our-router" },
    { use = "feed-forward" },
]
"""

TRAIN = """
import sys
from muse_core.cli.run import main

small = ["train.steps=2", "train.batch_size=2", "train.sequence_length=32", "train.warmup_steps=1",
         "evaluate.every=2", "evaluate.tokens=128", "evaluate.final_tokens=128", 'data.use="our-source"']
for recipe, run in zip(sys.argv[1::2], sys.argv[2::2]):
    main([recipe, "--run-dir", run, *(word for key in small for word in ("--set", key))], standalone_mode=False)
"""


def installed(folders: Iterable[Path], python: Callable, target: Path) -> Path:
    """Where pip installed all of them."""
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-compile", "--target", target)
    ended = python("-m", "pip", "install", *options, *folders, cwd=target.parent)
    assert ended.returncode == 0, ended.stderr
    return target


@pytest.mark.slow
def test_the_folders_pass_the_conformance_suites(written, muse_check, tmp_path) -> None:
    """None of them is installed here."""
    ended = muse_check(*written.values(), cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "FAILED" not in ended.stdout
    for kind, folder in written.items():
        assert f"{folder.name} 0.1.0\n" in ended.stdout
        assert re.search(rf"^{kind} {folder.name.removeprefix('muse-')}\n(  ok .*\n){{5}}", ended.stdout, re.MULTILINE)
    assert not [path for folder in written.values() for path in folder.rglob("*.pyc")], "a check leaves files behind"


@pytest.mark.slow
def test_installed_they_pass_their_own_tests_and_train(written, python, tmp_path) -> None:
    site = installed(written.values(), python, tmp_path / "site")
    # The suites that these tests inherit have run above.
    own = ["-k", "not TestConformance and not TestDistribution", "--import-mode=importlib", "-c", "/dev/null"]
    tests = [folder / "tests" for folder in written.values()]
    ended = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *own, *tests, cwd=tmp_path, site=site)
    passed = re.search(r"(\d+) passed", ended.stdout)
    assert ended.returncode == 0 and int(passed[1]) >= len(KINDS), ended.stdout

    (tmp_path / "together.toml").write_text(TOGETHER, encoding="utf-8")
    recipes = {kind: folder / "recipe.toml" for kind, folder in written.items()}
    recipes["together"] = tmp_path / "together.toml"
    runs = {kind: tmp_path / "runs" / kind.replace(" ", "-") for kind in recipes}
    words = [word for kind in recipes for word in (recipes[kind], runs[kind])]
    ended = python("-c", TRAIN, *words, cwd=tmp_path, site=site)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for kind, run in runs.items():
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        assert summary["steps"] == 2 and 0 < summary["held_out_bits_per_byte"] < 9
        used = (run / "muse.lock.toml").read_text(encoding="utf-8")
        for each in [kind] if kind != "together" else [kind for kind in KINDS if kind != "model"]:
            assert f"muse-our-{each.replace(' ', '-')}" in used, f"the run of {kind} uses no {each} of ours"

    # A run brings its tokenizer along: without its text, and not without the plugin that reads it.
    asked = ("generate", runs["tokenizer"], "--prompt", "Grüße", "--tokens", "3")
    ended = python("-c", "from muse_core.cli import muse; muse()", *asked, cwd=tmp_path, site=site)
    assert ended.returncode == 0 and ended.stdout.startswith("Grüße"), ended.stderr
    ended = python("-c", "from muse_core.cli import muse; muse()", *asked, cwd=tmp_path)
    assert ended.returncode == 2 and "there is no tokenizer 'our-tokenizer'" in ended.stderr, ended.stderr
    csv = (runs["together"] / "losses.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[1] for line in csv] == ["step", "1", "2"]


@pytest.mark.parametrize("name", ["none", "true", "layer-output", "tensor", "lion", "characters", "monitor", "wave"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_class_has_a_name_of_its_own(name: str, kind: str) -> None:
    """``None`` is no name of a class, and a class ``LayerOutput`` hid the one that it returns."""
    package = "muse_" + name.replace("-", "_")
    for path, text in rendered(name, kind).items():
        bound: list[str] = []
        for node in ast.parse(text).body if path.endswith(".py") else ():
            if isinstance(node, ast.ClassDef):
                bound.append(node.name)
            elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith(package):
                bound += [alias.asname or alias.name for alias in node.names]
        assert len(bound) == len(set(bound)), f"{path}: {sorted(bound)}"
    assert class_name("wave", kind) == "Wave"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_template_is_left(written, kind) -> None:
    for path in written[kind].rglob("*"):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        assert not re.search("new[-_]plugin|NewPlugin|NEW_", f"{path.name} {text}"), path


def test_every_kind_has_a_template_and_nothing_else_has() -> None:
    folders = {path.name for path in TEMPLATES.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == {"common"} | {kind.replace(" ", "_") for kind in KINDS}


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["Wave", "--kind", "layer"], 2, "'Wave' is not made of small letters"),
        (["2-waves", "--kind", "layer"], 2, "starting with a letter"),
        (["../wave", "--kind", "layer"], 2, "is not made of small letters"),
        (["muse-wave", "--kind", "layer"], 2, "leave out 'muse-': the distribution of 'wave' is named muse-wave"),
        (["wave", "--kind", "layers"], 2, "there is no kind 'layers' - did you mean 'layer'?"),
        (["fast-weights", "--kind", "layer"], 2, "is a memory layer of muse-fast-weights 0.2.0 - choose another name"),
        (["core", "--kind", "layer"], 2, "the distribution muse-core, which this one would replace"),
        (["kernels", "--kind", "filter"], 2, "the distribution muse-kernels, which this one would replace"),
        (["baseline", "--kind", "sink"], 2, "the distribution muse-baseline, which this one would replace"),
        (["there", "--kind", "layer"], 3, "muse-there exists already - choose another name"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_cannot_be_written_is_refused(arguments, code, sentence, tmp_path) -> None:
    (tmp_path / "muse-there").mkdir()
    ended = CliRunner().invoke(muse, ["plugins", "new", *arguments, "--into", str(tmp_path)])
    assert ended.exit_code == code and sentence in ended.output
    assert [path.name for path in tmp_path.iterdir()] == ["muse-there"]


def test_a_folder_that_cannot_be_written_is_an_error_of_storage(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    ended = CliRunner().invoke(muse, ["plugins", "new", "wave", "--kind", "layer", "--into", str(tmp_path / "file")])
    assert ended.exit_code == 3 and "cannot write the plugin: File exists - something of" in ended.output
