"""A broken plugin is a line that names it; the others work as if it were not there."""

import subprocess
import sys

import pytest

from muse_core.errors import PluginError
from muse_core.hookspecs import HOOK_OF_KIND
from muse_core.plugins import load_plugins

HEAD = """
    import attrs
    from muse_core.component import Component
    from muse_core.hookspecs import hookimpl

    @attrs.frozen(kw_only=True)
    class Options:
        '''Options.'''
"""

BROKEN = {
    "import error": ("import no_such_module", "importing its module raised ModuleNotFoundError: No module named"),
    "syntax error": ("def f(:", "importing its module raised SyntaxError"),
    "exit": ("raise SystemExit(3)", "importing its module raised SystemExit: 3 at "),
    "exit of pytest": ("import pytest; pytest.skip('x', allow_module_level=True)", "importing its module raised Skip"),
    "misspelt hook": (HEAD + """
    @hookimpl
    def muse_layer():
        yield Component("wave", options=Options, implementation="m:L")
    """, "muse_layer is not a hook of muse - did you mean 'muse_layers'?"),
    "unmarked hook": (HEAD + """
    def muse_layers():
        yield Component("wave", options=Options, implementation="m:L")
    """, "muse_layers is not marked, so it is never called - decorate it"),
    "hook with parameters": (HEAD + """
    @hookimpl
    def muse_layers(config):
        yield Component("wave", options=Options, implementation="m:L")
    """, "has a hook with wrong parameters"),
    "raising hook": (HEAD + """
    @hookimpl
    def muse_layers():
        yield Component("wave", options=Options, implementation="m:L")
        raise KeyError("depth")
    """, "muse_layers raised KeyError: 'depth' at "),
    "hook without rows": (HEAD + """
    @hookimpl
    def muse_layers():
        return None
    """, "muse_layers raised TypeError: 'NoneType' object is not iterable"),
    "foreign row": (HEAD + """
    @hookimpl
    def muse_layers():
        yield ("wave", Options)
    """, "muse_layers yields ('wave'"),
    "name": (HEAD + """
    @hookimpl
    def muse_layers():
        yield Component("Wave Layer", options=Options, implementation="m:L")
    """, "layer 'Wave Layer': a name is small letters"),
    "implementation": (HEAD + """
    @hookimpl
    def muse_layers():
        yield Component("wave", options=Options, implementation="m.L")
    """, "layer 'wave': implementation 'm.L' is not of the form 'module:Class'"),
    "twice": (HEAD + """
    @hookimpl
    def muse_layers():
        yield Component("wave", options=Options, implementation="m:L")

    @hookimpl
    def muse_memory_layers():
        yield Component("wave", options=Options, implementation="m:L")
    """, "offers 'wave' twice, as a memory layer and as a layer"),
}


def lines(distribution, registry):
    return [str(problem) for problem in registry.problems if problem.distribution == distribution]


@pytest.mark.parametrize("source, expected", BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_one_line_and_its_neighbour_works(install, layer_source, source, expected):
    install("example-broken", source, key="broken")
    install("example-sound", layer_source("sound"))
    registry = load_plugins(strict=False)
    (line,) = lines("example-broken", registry)
    assert line.startswith(f"example-broken 1.0.0 (broken): {expected}")
    assert registry.find("layer", "sound").distribution == "example-sound"
    assert lines("example-sound", registry) == []


SLIPS = {
    "singular": lambda hook: hook[:-1],
    "swapped": lambda hook: hook[:6] + hook[7] + hook[6] + hook[8:],
    "a letter twice": lambda hook: hook[:8] + hook[7:],
}


@pytest.mark.parametrize("slip", SLIPS.values(), ids=SLIPS)
def test_a_slip_in_the_name_of_any_hook_is_told_with_the_right_name(install, layer_source, slip):
    hooks = {f"example-slip-{number}": hook for number, hook in enumerate(HOOK_OF_KIND.values())}
    for name, hook in hooks.items():
        install(name, layer_source("wave").replace("muse_layers", slip(hook)), key="slip")
    registry = load_plugins(strict=False)
    for name, hook in hooks.items():
        (line,) = lines(name, registry)
        assert line == f"{name} 1.0.0 (slip): {slip(hook)} is not a hook of muse - did you mean '{hook}'?"


OPTIONS = {
    "plain class": ("class Options: pass", "is not an attrs class"),
    "mutable": ("@attrs.define(kw_only=True)\nclass Options:\n    '''O.'''", "Options is not frozen"),
    "positional": ("@attrs.frozen\nclass Options:\n    '''O.'''\n    a: int = 1\n    '''A.'''",
                   "Options.a is not keyword-only"),
    "undocumented": ("@attrs.frozen(kw_only=True)\nclass Options:\n    '''O.'''\n    a: int = 1",
                     "Options has options without a string under them: a"),
    "without help": ("@attrs.frozen(kw_only=True)\nclass Options:\n    a: int = 1\n    '''A.'''",
                     "Options has no docstring"),
    "dict": ("@attrs.frozen(kw_only=True)\nclass Options:\n    '''O.'''\n    a: dict = {}\n    '''A.'''",
             "Options.a: <class 'dict'> is not a valid type for a recipe"),
    "nested lists": ("@attrs.frozen(kw_only=True)\nclass Options:\n    '''O.'''\n"
                     "    a: tuple[tuple[int, ...], ...] = ()\n    '''A.'''", "lists within lists are not for recipes"),
    "unresolved": ("@attrs.frozen(kw_only=True)\nclass Options:\n    '''O.'''\n    a: 'Missing' = 1\n    '''A.'''",
                   "annotation that cannot be resolved: name 'Missing' is not defined"),
    "without a type": ("@attrs.frozen(kw_only=True)\nclass Options:\n    '''O.'''\n    span = attrs.field(default=4)",
                       "Options.span has no type: write span: int = …"),
    "without a type beside one": ("@attrs.frozen(kw_only=True)\nclass Options:\n    '''O.'''\n    a: int = 1\n"
                                  "    '''A.'''\n    span = attrs.field(default=())", "write span: TYPE = …"),
    "None by value": ("@attrs.frozen(kw_only=True)\nclass Options:\n    '''O.'''\n    a: int | None = 3\n    '''A.'''",
                      "may be None, so its default must be None"),
    "use": ("@attrs.frozen(kw_only=True)\nclass Options:\n    '''O.'''\n    use: str = ''\n    '''A.'''",
            "the key 'use' names the component itself"),
    "a key of the block": ("@attrs.frozen(kw_only=True)\nclass Options:\n    '''O.'''\n    at: int = 1\n    '''A.'''",
                           "Options.at: the key 'at' belongs to the table around the layer"),
}


@pytest.mark.parametrize("options, expected", OPTIONS.values(), ids=OPTIONS)
def test_wrong_options_are_a_problem(install, options, expected):
    source = "\n".join([
        "import attrs", "from muse_core.component import Component", "from muse_core.hookspecs import hookimpl",
        options, "@hookimpl", "def muse_layers():",
        "    yield Component('wave', options=Options, implementation='m:L')",
    ])
    install("example-options", source)
    registry = load_plugins(strict=False)
    (line,) = lines("example-options", registry)
    assert line.startswith("example-options 1.0.0 (example-options): layer 'wave': ")
    assert expected in line
    usable = "without a string" in line or "no docstring" in line
    assert bool(registry.offers("layer", "wave")) == usable


def test_importing_torch_in_the_plugin_module_is_a_problem(install):
    module = install("example-heavy", "import torch")
    code = "from muse_core.plugins import load_plugins\nfor one in load_plugins(strict=False).problems: print(one)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": str(install.site)})
    assert module and "example-heavy 1.0.0 (example-heavy): imports torch when it is listed" in done.stdout


def test_what_a_plugin_prints_does_not_reach_stdout(install, capsys):
    install("example-loud", "print('hello')")
    load_plugins(strict=False)
    captured = capsys.readouterr()
    assert captured.out == "" and "hello" in captured.err


def test_strict_stops_on_any_problem(install, monkeypatch):
    install("example-broken", "raise RuntimeError('no')", key="broken")
    monkeypatch.setenv("MUSE_STRICT", "1")
    with pytest.raises(PluginError, match=r"example-broken 1\.0\.0 \(broken\): importing its module raised Runtime"):
        load_plugins()
    monkeypatch.setenv("MUSE_STRICT", "0")
    load_plugins()


def test_a_slow_import_is_timed(install):
    install("example-slow", "import time; time.sleep(0.05)")
    (loaded,) = [one for one in load_plugins(strict=False).plugins if one.plugin.distribution == "example-slow"]
    assert loaded.seconds >= 0.05


def test_a_denied_plugin_is_not_imported(install, layer_source):
    module = install("example-wave", layer_source("wave"))
    for lists in ({"deny": ["Example_Wave"]}, {"allow": ["muse-fast-weights"]}):
        registry = load_plugins(strict=False, **lists)
        assert module not in sys.modules
        assert not registry.offers("layer", "wave")
        assert registry.offers("model", "stack")
