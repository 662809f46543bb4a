"""``muse plugins check`` fails a plugin that is wrong in one way, and says in which."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from muse_core.cli import muse
from muse_core.testing import reporter
from muse_core.testing.cases import installed
from muse_core.testing.check import choose, composed, module_of
from muse_core.testing.reporter import ResultReporter

BROKEN = {
    "a layer that leaks": (
        "layer", "layer.py",
        "return LayerOutput(self.output(mixed.to(x.dtype))",
        "return LayerOutput(self.output(mixed + x.mean(dim=1, keepdim=True))",
        "a large change reaches no earlier token and no other row (6 of 6 cases)",
        "eval: not causal: update before the change of x at token ",
    ),
    "a misspelt hook": (
        "potential", "plugin.py", "muse_potentials()", "muse_potential()",
        "loads without a problem",
        "muse-our-potential 0.1.0 (our-potential): muse_potential is not a hook of muse - "
        "did you mean 'muse_potentials'?",
    ),
    "torch at import": (
        "stage", "plugin.py", "from muse_core.component", "import torch\nfrom muse_core.component",
        "listing it imports nothing heavy",
        "imports torch when it is listed - import it in the implementation's module only",
    ),
    "a wrong signature": (
        "source", "source.py", "def documents(self)", "def documents(self, split)",
        "the implementation has the methods of its kind",
        "OurSource.documents: parameter 'split' is not in the contract () and has no default",
    ),
    "an option without help": (
        "initializer", "options.py", '    """Largest magnitude, in standard deviations."""\n', "",
        "every option is documented",
        "OurInitializerOptions has options without a string under them: cut",
    ),
    "a global setting changed": (
        "filter", "filter.py", "class OurFilter", "torch.set_default_dtype(torch.float64)\n\n\nclass OurFilter",
        "importing its implementations changes nothing global",
        "changes torch default dtype",
    ),
    "nothing to build": (
        "safety monitor", "options.py", "factor: float = field(default=20.0, ", "factor: float = field(",
        "safety monitor our-safety-monitor: nothing to build, since factor has no default - give "
        "OurSafetyMonitorOptions a static method examples(folder) that returns tables of options",
        "",
    ),
}
"""Title → kind, file, what stands there, what stands there instead, the check that fails, its complaint."""


@pytest.mark.slow
def test_what_is_wrong_is_said_and_what_is_right_is_not_blamed(written, checked, tmp_path) -> None:
    """All of them and a bundled plugin in one process."""
    folders = []
    for kind, file, old, new, _, _ in BROKEN.values():
        folder = tmp_path / written[kind].name
        shutil.copytree(written[kind], folder)
        (path,) = folder.glob(f"src/*/{file}")
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} in {path}"
        path.write_text(text.replace(old, new), encoding="utf-8")
        folders.append(folder)
    ended = checked(*folders, "gradient-safety", cwd=tmp_path)
    assert ended.returncode == 5, ended.stdout + ended.stderr
    for title, (*_, check, complaint) in BROKEN.items():
        told = re.findall(rf"FAILED  {re.escape(check)}\n((?: {{10}}.*\n)*)", ended.stdout)
        assert any(complaint in lines for lines in told), f"{title}: {told}\n{ended.stdout}"
    (own,) = re.findall(r"^safety monitor gradient-safety\n((?:  .*\n)+)", ended.stdout, re.MULTILINE)
    assert "  ok      lets a healthy run go on (3 cases)\n" in own and "FAILED" not in own
    assert re.search(r"^\d+ checks passed, \d+ failed in \d+ s\n\Z", ended.stdout, re.MULTILINE), ended.stdout


def test_a_plugin_without_a_component_of_the_kind_fails(written, checked, tmp_path) -> None:
    ended = checked("--kind", "memory-layer", written["source"], cwd=tmp_path)
    assert ended.returncode == 5
    assert ended.stderr == "muse-our-source 0.1.0 has no memory layer to check\n"


def check(*arguments: object) -> tuple[int, str]:
    """Exit code and output of the command where it runs nothing."""
    ended = CliRunner().invoke(muse, ["plugins", "check", *map(str, arguments)])
    return ended.exit_code, ended.output


def test_a_name_that_is_nothing_is_refused(checked, tmp_path) -> None:
    ended = checked("fast-weigts", cwd=tmp_path)
    assert ended.returncode == 5
    assert ended.stderr == (
        "nothing installed is named 'fast-weigts', nor is it the folder of a plugin - did you mean 'fast-weights'?\n"
    )


@pytest.mark.parametrize(
    ("pyproject", "sentence"),
    [
        ("[project", "is no TOML: "),
        ("[tool.poetry]\nname = 'muse-x'", "has no [project] table with a name"),
        ("[project]\nname = 'muse-x'", 'names no plugin - add [project.entry-points."muse.v2"]'),
        (
            "[project]\nname = 'muse-x'\n[project.entry-points.'muse.v2']\nx = 'muse_x.plugin'",
            "neither src nor the folder itself holds muse_x, which its entry points name",
        ),
    ],
    ids=["no TOML", "no project", "no entry point", "no module"],
)
def test_a_folder_that_describes_no_plugin_is_refused(pyproject, sentence, tmp_path) -> None:
    (tmp_path / "pyproject.toml").write_text(pyproject, encoding="utf-8")
    code, output = check(tmp_path)
    assert code == 5 and sentence in output


def test_a_folder_without_pyproject_is_refused(tmp_path) -> None:
    code, output = check(tmp_path)
    assert code == 5 and output == f"{tmp_path} has no pyproject.toml\n"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("{here}/pyproject.toml", "{here}/pyproject.toml is a file - give the folder of the distribution"),
        ("{here}/nowhere", "there is no folder {here}/nowhere"),
    ],
)
def test_a_path_that_is_no_folder_is_refused(given, sentence, tmp_path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'muse-x'")
    assert check(given.format(here=tmp_path)) == (5, sentence.format(here=tmp_path) + "\n")


def test_a_kind_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert check("fast-weights", "--kind", "mixer")[0] == 2


def test_layers_are_checked_on_the_device_that_is_asked_for() -> None:
    titles: dict[str, str] = {}
    written = module_of((choose("muse-fast-weights"), choose("muse-potentials")), titles, "cuda:1")
    classes = {titles[head.partition("(")[0]]: body for head, _, body in
               (part.partition("\n") for part in written.split("\nclass ")[2:])}
    layers = [title for title in classes if title.split()[0] in ("layer", "memory")]
    assert "memory layer fast-weights" in layers and len(layers) < len(classes)
    assert [title for title, body in classes.items() if "device = 'cuda:1'" in body] == layers


@pytest.mark.parametrize(
    "device, said",
    [("nowhere", "--device: 'nowhere' is not a valid device"), ("cuda:99", "--device: 'cuda:99' ")],
)
def test_a_device_that_is_not_here_is_said(checked, tmp_path, device: str, said: str) -> None:
    ended = checked("feed-forward", "--device", device, cwd=tmp_path)
    assert ended.returncode == 2 and ended.stderr.startswith(said), ended.stderr


def test_one_cause_of_many_failures_is_told_once(monkeypatch):
    complaints = {"a": "cannot be imported", "b": "cannot be imported", "c": "differs by 3"}
    monkeypatch.setattr(reporter, "_complaint", lambda report: complaints[report.nodeid[-1]])
    said = io.StringIO()
    told = ResultReporter({"One": "layer one", "Two": "layer two"}, said)
    for node in ("One::test_a", "One::test_b", "One::test_c", "Two::test_a"):
        told.pytest_runtest_logreport(SimpleNamespace(when="call", passed=False, skipped=False, nodeid=f"x.py::{node}"))
    told.pytest_sessionfinish()
    assert said.getvalue().splitlines() == [
        "layer one", "  FAILED  a", "          cannot be imported", "  FAILED  b, for a reason told above",
        "  FAILED  c", "          differs by 3", "", "layer two", "  FAILED  a", "          cannot be imported"]
    assert told.failed == 4


def test_what_a_recipe_makes_of_other_components_is_skipped_and_not_failed(checked, tmp_path: Path) -> None:
    ended = checked("stack", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout
    assert "skipped model stack: is made of layers that a recipe chooses - to check it with some, " in ended.stdout
    assert "muse_core.testing.ModelSuite with options" in ended.stdout and "0 failed, 1 skipped" in ended.stdout


def test_components_with_options_of_their_own_are_built() -> None:
    composed_ones = {row.name for row in installed().rows() if composed(row)}
    assert composed_ones == {"stack", "compressed"}
