"""Who may import whom, read from the sources, and what is imported when nothing is asked for, seen by a process."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from muse_core.plugins.discovery import normalised

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
HEAVY = ("torch", "datasets", "tokenizers", "matplotlib", "pandas", "pyarrow", "safetensors")
OPTIONAL = {
    "fla": "asked for where it is installed",
    "huggingface_hub": "datasets needs it",
    "titans_pytorch": "one that muse bench compares with",
    "triton": "asked for where the kernels' backend is triton",
}


def sources(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, f"{folder} holds no module"
    return found


def imports(path: Path, *, at_import: bool = False) -> Iterator[str]:
    """Absolute names of imported modules; ``at_import`` leaves out those inside functions and for type checkers."""
    todo = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield node.module or ""
        elif at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        elif at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)


def packages(path: Path, **choice: bool) -> set[str]:
    """First parts of what a file imports, of this project's names."""
    return {name.split(".")[0] for name in imports(path, **choice) if name.startswith("muse_")}


@pytest.mark.parametrize("path", sources(ROOT / "muse_core"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_imports_no_plugin(path: Path) -> None:
    allowed = {"muse_core"}
    if path.is_relative_to(ROOT / "muse_core" / "testing"):
        allowed.add("muse_kernels")  # the suite of kernel backends compares with the reference
    assert packages(path) <= allowed


def test_the_core_needs_the_kernels_only_when_asked() -> None:
    assert not any("muse_kernels" in packages(path, at_import=True) for path in sources(ROOT / "muse_core"))


def test_a_run_of_one_process_imports_nothing_distributed() -> None:
    found = {
        path.name for path in sources(ROOT / "muse_core")
        if any(name.startswith("torch.distributed") for name in imports(path, at_import=True))
    }
    assert found == {"group.py", "sequence.py"}, "which muse_core.parallel imports under a launcher alone"
    importers = {
        path.name for path in sources(ROOT / "muse_core")
        if {"muse_core.parallel.group", "muse_core.parallel.sequence"} & set(imports(path, at_import=True))
    }
    assert importers <= {"group.py", "processes.py"}


def modules_of(path: Path, known: dict[str, Path]) -> set[str]:
    """Those of the known modules that a file imports, wherever in it, whole or by what they define."""
    found = set(imports(path))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name in known and not known[name].name.startswith("__")}


def test_no_modules_of_the_core_import_each_other_in_a_circle() -> None:
    """Not even inside functions or for type checkers: data flows one way."""
    known = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in sources(ROOT / "muse_core") if "new_plugin" not in path.parts
    }
    graph = {name: modules_of(path, known) - {name} for name, path in known.items()}
    assert sum(map(len, graph.values())) > 300
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("path", sources(ROOT / "kernels" / "src"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_kernels_stand_alone(path: Path) -> None:
    assert packages(path) <= {"muse_kernels"}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_plugins_do_not_import_each_other(plugin: Path) -> None:
    own = "muse_" + plugin.name.replace("-", "_")
    for path in sources(plugin / "src"):
        assert packages(path) <= {"muse_core", "muse_kernels", own}, path


packages_distributions = functools.cache(metadata.packages_distributions)


@pytest.mark.parametrize("folder", [ROOT, ROOT / "kernels", *PLUGINS], ids=lambda path: path.name)
def test_what_is_imported_is_declared(folder: Path) -> None:
    """By the distribution or by the core, which every plugin needs, wherever in the sources the import stands."""
    declared = set()
    for place in {folder, folder if folder.name == "kernels" else ROOT}:
        project = tomllib.loads((place / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = project.get("optional-dependencies", {}).values()
        for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
            declared.add(normalised(re.split(r"[<>=~!;\[ ]", line)[0]))
    known = packages_distributions()
    for path in sources(ROOT / "muse_core" if folder == ROOT else folder / "src"):
        for name in {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - OPTIONAL.keys():
            of_project = name.startswith("muse_") or name == "new_plugin"
            assert of_project or declared & set(map(normalised, known.get(name, [name]))), f"{path} imports {name}"


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_what_a_plugin_lists_names_no_heavy_import(plugin: Path) -> None:
    for name in ("plugin.py", "options.py"):
        for path in plugin.rglob(f"src/*/{name}"):
            heavy = {module for module in imports(path, at_import=True) if module.split(".")[0] in HEAVY}
            assert not heavy, f"{path.relative_to(ROOT)} imports {', '.join(heavy)}"


@pytest.mark.parametrize(
    "code",
    [
        "import muse_core; dir(muse_core)",
        "from muse_core.cli.eval import evaluate; evaluate(['--help'], standalone_mode=False)",
        "from muse_core.plugins import load_plugins; load_plugins()",
        "from muse_core.recipe.schema import Recipe",
        "from muse_core.cli import muse; muse(['plugins', 'list'], standalone_mode=False)",
        "from muse_core.cli.run import main; main(['--help'], standalone_mode=False)",
        "import muse_core.testing.pytest_plugin",
    ],
    ids=["muse_core", "muse eval --help", "loading plugins", "recipe schema", "muse plugins list", "muse-run --help",
         "pytest plugin"],
)
def test_torch_is_not_imported_for(code: str) -> None:
    report = f"; import sys; print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.rstrip().endswith("heavy: []"), ended.stdout
