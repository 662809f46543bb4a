"""What the machine can run is said per backend, and whatever is broken is a line."""

import importlib.util
import json

import attrs
import pytest
from click.testing import CliRunner

from muse_core.cli import doctor, muse
from muse_core.cli.doctor import availability, slow_imports
from muse_core.plugins import load_plugins

BACKEND = """
    import attrs
    from muse_core.component import Component
    from muse_core.hookspecs import hookimpl

    @attrs.frozen(kw_only=True)
    class Options:
        '''A backend.'''

    class Backend:
        rank = 1

        def __init__(self, options, context):
            pass

        def operations(self):
            return {{"scan": "m:f", "apply": "m:g"}}

        def refuse(self, request):
            {refuse}

    @hookimpl
    def muse_kernel_backends():
        yield Component("example", options=Options, implementation="example_kernels_plugin:Backend")
"""


@pytest.mark.parametrize(
    "refuse, expected",
    [
        ("return None", "cpu: apply, scan"),
        ("return 'needs a GPU'", "cpu: nothing (needs a GPU)"),
        ("return 'too wide' if request.operation == 'scan' else None", "cpu: apply (too wide)"),
        ("raise KeyError('x')", "unusable: asking it raised KeyError: 'x'"),
    ],
)
def test_a_backend_says_what_it_serves(install, refuse, expected):
    install("example-kernels", BACKEND.format(refuse=refuse))
    row = load_plugins(strict=False).find("kernel backend", "example")
    assert availability(row, ["cpu"]) == expected


def test_a_backend_that_cannot_be_imported_is_unusable(install):
    install("example-kernels", BACKEND.format(refuse="return None").replace("_plugin:Backend", "_plugin:Missing"))
    row = load_plugins(strict=False).find("kernel backend", "example")
    assert availability(row, ["cpu"]).startswith("unusable: kernel backend 'example' of example-kernels 1.0.0")


def test_a_slow_import_is_named(install, layer_source):
    install("example-slow", layer_source("wave"))
    registry = load_plugins(strict=False)
    loaded = [attrs.evolve(one, seconds=2.5) if one.plugin.distribution == "example-slow" else
              attrs.evolve(one, seconds=0.9) for one in registry.plugins]
    (line,) = slow_imports(attrs.evolve(registry, plugins=tuple(loaded)))
    assert line.startswith("example-slow 1.0.0 (example-slow): its import took 2.5 s")


def test_the_command_survives_a_broken_plugin(install, monkeypatch):
    install("example-broken", "raise SystemExit(1)")
    monkeypatch.setenv("MUSE_STRICT", "1")
    result = CliRunner().invoke(muse, ["doctor", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["versions"]["torch"] != "not installed" and "cpu" in found["devices"]
    assert any("example-broken" in line for line in found["problems"])


def test_extras_that_are_missing_come_with_the_command_that_brings_them(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "not installed" if name == "vl-convert-python" else "1.0")
    found = doctor._extras()
    assert found["report"] == "vl-convert-python not installed - pip install 'muse-core[report]'"
    assert "pytest 1.0" in found["test"] and "pip install" not in found["test"] and "torch" not in str(found.values())


def test_folders_that_are_not_there_yet_have_room_in_their_parents(monkeypatch, tmp_path):
    monkeypatch.setenv("MUSE_CACHE", str(tmp_path / "a" / "b"))
    monkeypatch.chdir(tmp_path)
    found = doctor._folders()
    assert found["encoded text"].startswith(f"{tmp_path / 'a' / 'b'}, ") and "GiB free" in found["runs"]
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("absent", [["hypothesis"], ["pytest", "hypothesis"]])
def test_the_selftest_names_what_it_needs(absent, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    result = CliRunner().invoke(muse, ["selftest", "--only", "C7"])
    needed = f"the tests need {' and '.join(absent)} - pip install 'muse-core[test]'\n"
    assert (result.exit_code, result.stderr) == (5, needed)
