"""The ``muse`` command as a user meets it: output, exit codes, and nothing heavy imported."""

import json
import subprocess
import sys
import tomllib

import pytest
from click.testing import CliRunner

from muse_core.cli import muse
from muse_core.cli.errors import guarded
from muse_core.errors import DataError, Halted, PluginError, RecipeError, StorageError

HEAVY = {"torch", "datasets", "matplotlib", "transformers"}


def run(*arguments):
    return CliRunner().invoke(muse, [str(one) for one in arguments])


@pytest.fixture
def recipe(tmp_path, install, layer_source):
    """A recipe on two plugins that the test installs."""
    install("example-wave", layer_source("wave", "example_wave_plugin"))
    install("example-pages", layer_source("pages", "example_pages_plugin").replace("muse_layers", "muse_sources"))
    file = tmp_path / "x.toml"
    file.write_text('name = "x"\ndata = { use = "pages" }\n[[model.block]]\nuse = "wave"\n')
    return file


@pytest.mark.parametrize(
    "program, arguments",
    [
        ("muse_core.cli:muse", ["--help"]),
        ("muse_core.cli:muse", ["plugins", "list"]),
        ("muse_core.cli:muse", ["plugins", "list", "--json"]),
        ("muse_core.cli:muse", ["plugins", "show", "train"]),
        ("muse_core.cli:muse", ["recipe", "check", "{recipe}"]),
        ("muse_core.cli:muse", ["recipe", "fill", "{recipe}"]),
        ("muse_core.cli:muse", ["recipe", "schema"]),
        ("muse_core.cli.run:main", ["--help"]),
        ("muse_core.cli.run:main", ["no-such-recipe.toml"]),
    ],
)
def test_nothing_heavy_is_imported(program, arguments, recipe, install):
    module, _, attribute = program.partition(":")
    code = f"import sys; from {module} import {attribute} as command\ntry: command({arguments!r})\n" \
           "except SystemExit: print(sorted(sys.modules), file=sys.stderr)"
    code = code.replace("{recipe}", str(recipe))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": str(install.site)})
    imported = set(done.stderr.rpartition("[")[2].replace("'", "").replace("]", "").strip().split(", "))
    assert module in imported
    assert not imported & HEAVY


class TestPluginsList:
    def test_components_and_problems(self, recipe, install):
        install("example-broken", "import nowhere_at_all")
        result = run("plugins", "list")
        assert result.exit_code == 0
        assert "  wave                 example-wave 1.0.0           A layer\n" in result.stdout
        assert "  example-broken 1.0.0 (example-broken): importing its module raised ModuleN" in result.stdout

    def test_json(self, recipe):
        rows = json.loads(run("plugins", "list", "--json").stdout)["components"]
        (row,) = [row for row in rows if row["name"] == "wave"]
        assert row["kind"] == "layer" and row["distribution"] == "example-wave"
        assert row["path"].endswith("example_wave_plugin.py")

    def test_one_kind(self, recipe):
        result = run("plugins", "list", "--kind", "stage")
        assert "train" in result.stdout and "wave" not in result.stdout
        listed = run("plugins", "list", "--kind", "memory-layer").stdout
        assert listed.startswith("memory layer\n  ") and "\n  fast-weights " in listed
        wrong = run("plugins", "list", "--kind", "layers")
        assert (wrong.exit_code, wrong.stderr) == (2, "--kind: there is no kind 'layers' - did you mean 'layer'?\n")

    def test_strict_is_exit_5(self, recipe, install, monkeypatch):
        install("example-broken", "import nowhere_at_all")
        monkeypatch.setenv("MUSE_STRICT", "1")
        result = run("plugins", "list")
        assert result.exit_code == 5 and "example-broken 1.0.0" in result.stderr and result.stdout == ""


class TestPluginsShow:
    def test_options_with_type_range_default_help_and_place(self, recipe, install):
        result = run("plugins", "show", "wave")
        place = f"{install.site}/example_wave_plugin.py"
        assert result.stdout == f"""wave (layer) from example-wave 1.0.0
A layer.
options: {place}:7
implementation: example_wave_plugin:Layer

  size: a whole number, at least 1; default 4
      Its size.
      {place}:9
"""

    def test_a_distribution_shows_all_its_components(self):
        result = run("plugins", "show", "muse-core")
        assert [line for line in result.stdout.splitlines() if " from muse-core" in line] == [
            line for line in result.stdout.splitlines() if " from " in line and "(" in line and line[0] != " "]
        assert "stack (model) from muse-core" in result.stdout and "train (stage) from muse-core" in result.stdout

    def test_json(self, recipe):
        (page,) = json.loads(run("plugins", "show", "wave", "--json").stdout)
        (option,) = page["options"]
        assert {key: option[key] for key in ("key", "type", "default", "range", "required", "help")} == {
            "key": "size", "type": "a whole number", "default": 4, "range": "at least 1", "required": False,
            "help": "Its size."}

    def test_an_unknown_name_is_exit_5_with_a_near_one(self, recipe):
        result = run("plugins", "show", "waves")
        assert (result.exit_code, result.stderr) == (5, "nothing installed is named 'waves' - did you mean 'wave'?\n")

    def test_a_broken_plugin_says_why(self, install):
        install("example-broken", "raise SystemExit(0)")
        result = run("plugins", "show", "example-broken")
        assert result.exit_code == 5 and "importing its module raised SystemExit: 0" in result.stderr


class TestPluginsWhy:
    def test_each_component_with_its_place_and_reason(self, recipe):
        rows = json.loads(run("plugins", "why", recipe, "--json").stdout)
        layer = next(row for row in rows if row["key"] == "model.block[0]")
        assert layer["distribution"] == "example-wave"
        assert layer["place"] == f"{recipe}:3"
        assert layer["reason"] == "the only installed layer named 'wave'"
        stage = next(row for row in rows if row["key"] == "stages[0]")
        assert stage["reason"] == "by default; the only installed stage named 'train'"

    def test_a_settled_clash(self, recipe, install, layer_source):
        install("example-other", layer_source("wave", "example_other_plugin"))
        assert "both offer a layer 'wave'" in run("plugins", "why", recipe).stderr
        result = run("plugins", "why", recipe, "--set", "model.block[0].use=wave@example-other")
        assert "named as wave@example-other; example-wave 1.0.0 offers the name too" in result.stdout


class TestRecipe:
    def test_check(self, recipe):
        result = run("recipe", "check", recipe)
        assert (result.exit_code, result.stdout) == (0, f"{recipe}: ok (x; example-pages, example-wave)\n")

    def test_check_of_several_says_everything(self, recipe, tmp_path):
        wrong = tmp_path / "wrong.toml"
        wrong.write_text('name = "w"\nsede = 1\n[[model.block]]\nuse = "wave"\nsize = 0\n')
        result = run("recipe", "check", wrong, recipe, tmp_path / "none.toml")
        assert result.exit_code == 2
        assert result.stdout == f"{recipe}: ok (x; example-pages, example-wave)\n"
        assert [line.removeprefix(str(tmp_path)) for line in result.stderr.splitlines() if "data.use" not in line] == [
            "/wrong.toml:2: sede: a recipe has no key 'sede' - did you mean 'seed'?",
            "/wrong.toml:5: model.block[0].size: must be at least 1, not 0",
            "/none.toml: no such file",
        ]

    def test_fill_gives_every_default_and_itself_again(self, recipe, tmp_path):
        filled = tmp_path / "filled.toml"
        assert run("recipe", "fill", recipe, "-o", filled).exit_code == 0
        assert tomllib.loads(filled.read_text())["model"]["block"] == [{"use": "wave", "size": 4}]
        assert run("recipe", "fill", filled).stdout == filled.read_text()

    def test_fill_into_nowhere_is_exit_3(self, recipe, tmp_path):
        result = run("recipe", "fill", recipe, "-o", tmp_path / "no" / "x.toml")
        assert (result.exit_code, result.stderr) == (
            3, f"{tmp_path}/no/x.toml: cannot write: No such file or directory - check the disk and the path\n")

    def test_overrides(self, recipe):
        assert "steps = 7\n" in run("recipe", "fill", recipe, "--set", "train.steps=7").stdout
        result = run("recipe", "check", recipe, "--set", "train.steps=0")
        assert result.stderr == "--set train.steps=0: train.steps: must be at least 1, not 0\n"


@pytest.mark.parametrize(
    "error, code",
    [(RecipeError("a"), 2), (StorageError("a"), 3), (DataError("a"), 3), (Halted("a"), 4), (PluginError("a"), 5),
     (KeyboardInterrupt(), 130)],
)
def test_exit_codes(error, code, capsys):
    with pytest.raises(SystemExit) as stopped, guarded():
        raise error
    assert stopped.value.code == code
    assert capsys.readouterr().err in ("a\n", "interrupted\n")


TOLD = "KeyboardInterrupt: <EMPTY MESSAGE>\n\nAt:\n  torch/_library/custom_ops.py(440): backend_impl\n"


@pytest.mark.parametrize("through", [None, PluginError("the layer raised")])
@pytest.mark.parametrize("before", ["", "The operation failed in the TorchScript interpreter.\nRuntimeError: "])
def test_an_interrupt_that_torch_gives_another_type_is_one(before, through, capsys):
    """As one arrives that comes while C++ calls Python."""
    interrupt = RuntimeError(before + TOLD)
    with pytest.raises(SystemExit) as stopped, guarded():
        if through is None:
            raise interrupt
        raise through from interrupt
    assert stopped.value.code == 130 and capsys.readouterr().err == "interrupted\n"
    with pytest.raises(RuntimeError), guarded():
        raise RuntimeError("a KeyboardInterrupt: is only told of")


def test_a_fault_of_the_program_keeps_its_traceback():
    code = "from muse_core.cli.errors import guarded\nwith guarded(): raise KeyError('x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr
