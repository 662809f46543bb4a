"""``muse plugins check``: the conformance suite of a plugin's kinds, in a process that sees it as installed."""

from __future__ import annotations

import os
from pathlib import Path

import click

from muse_core.cli import CONTEXT
from muse_core.cli.errors import guarded
from muse_core.cli.threads import import_numpy


@click.command(context_settings=CONTEXT)
@click.argument("plugins", nargs=-1, required=True, metavar="NAME|PATH...")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only components of this kind. May be repeated.")
@click.option("--device", default="cpu", metavar="DEVICE", help="Where layers are checked: cpu, cuda or cuda:<index>.")
def check(plugins: tuple[str, ...], kinds: tuple[str, ...], device: str) -> None:
    """Say which promises of the contracts a plugin keeps.

    NAME is a component or a distribution that is installed, PATH the folder of a distribution, installed or not; it
    needs its dependencies only. On another device than the processor layers alone are checked, in the widest precision
    that they have. Exit codes: 0 all checks passed; 2 there is no such device; 5 some failed, or there was nothing to
    check.
    """
    with guarded():
        import_numpy()
        import subprocess
        import sys
        from importlib.util import find_spec
        from tempfile import TemporaryDirectory

        from muse_core.cli.kinds import read_kind
        from muse_core.errors import PluginError

        kinds = tuple(read_kind(kind) for kind in kinds)
        if find_spec("pytest") is None:
            raise PluginError("checking needs pytest - pip install 'muse-core[test]'")
        with TemporaryDirectory(prefix="muse-check-") as folder:
            names, environment = _visible(plugins, Path(folder))
            options = [f"--device={device}", *(f"--kind={kind}" for kind in kinds)]
            command = [sys.executable, "-P", "-m", "muse_core.testing.check", *options, "--", *names]
            code = subprocess.run(command, env=environment, check=False).returncode
        if code < 0:
            raise PluginError(f"the process that runs the checks ended by signal {-code}")
        raise SystemExit(code)


def _visible(plugins: tuple[str, ...], site: Path) -> tuple[list[str], dict[str, str]]:
    """Names to check, and an environment in which folders are found like installed distributions."""
    from muse_core.errors import PluginError
    from muse_core.plugins.uninstalled import describe

    names, sources = [], [str(site)]
    for plugin in plugins:
        folder = Path(plugin)
        if (folder / "pyproject.toml").is_file():
            found = describe(folder, site)
            names.append(found.distribution)
            sources.append(str(found.source))
        elif folder.is_file():
            raise PluginError(f"{plugin} is a file - give the folder of the distribution")
        elif folder.is_dir() and plugin != folder.name:
            raise PluginError(f"{plugin} has no pyproject.toml")
        elif os.sep in plugin:
            raise PluginError(f"there is no folder {plugin}")
        else:
            names.append(plugin)
    inherited = os.environ.get("PYTHONPATH")
    # Settings of the surroundings must not change what is checked, nor a check leave files in the folder.
    environment = {key: value for key, value in os.environ.items() if key not in ("MUSE_STRICT", "PYTEST_ADDOPTS")}
    environment |= {
        "PYTHONPATH": os.pathsep.join([*sources, *([inherited] if inherited else [])]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    return names, environment
