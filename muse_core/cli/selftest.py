"""``muse selftest``: whether this installation keeps the promises about failures."""

from __future__ import annotations

import click

from muse_core.cli import CONTEXT
from muse_core.cli.errors import guarded
from muse_core.cli.threads import import_numpy


@click.command(context_settings=CONTEXT)
@click.option("--long", "is_long", is_flag=True, help="The long forms, with a new seed: more than an hour.")
@click.option("--only", metavar="C1,M2", help="Only these promises.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Repeat what was random. [default: short forms fixed]")
def selftest(is_long: bool, only: str | None, seed: int | None) -> None:
    """Kill, damage, poison and interrupt small runs in a temporary folder, and print which promises held.

    The table shows each promise with its result and figure; a broken one comes with what repeats it. Exit codes: 0 all
    held; 4 one did not; 2 wrong arguments.
    """
    with guarded():
        import_numpy()
        import os
        import subprocess
        import sys
        from importlib.util import find_spec

        from muse_core.errors import PluginError, RecipeError
        from muse_core.plugins.near import suggestion
        from muse_core.selftest.promises import PROMISES

        names = PROMISES if only is None else [name.strip().upper() for name in only.split(",")]
        for name in names:
            if name not in PROMISES:
                raise RecipeError(f"--only: there is no promise {name!r}{suggestion(name, PROMISES, 'there are')}")
        if missing := [name for name in ("pytest", "hypothesis") if find_spec(name) is None]:
            raise PluginError(f"the tests need {' and '.join(missing)} - pip install 'muse-core[test]'")
        options = [*(["--long"] if is_long else []), *(["--seed", str(seed)] if seed is not None else [])]
        command = [sys.executable, "-P", "-m", "muse_core.selftest.run", "--only", ",".join(names), *options]
        environment = {key: value for key, value in os.environ.items() if key not in ("MUSE_STRICT", "PYTEST_ADDOPTS")}
        raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)
