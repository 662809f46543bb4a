"""A stranger's plugin in the matrix of environments: tox installs it, and the conformance tests take it up."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from muse_core.testing import warm

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "muse-leaky-average"


def run(*arguments: object, site: Path | None = None) -> str:
    """Output of Python in the root of the repository."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TOX_", "PYTEST"))}
    environment |= {"PYTHONPATH": str(site)} if site is not None else {}
    ended = warm.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize("environment", ["py311-torch", "py312-torch-triton"])
def test_tox_adds_it_to_an_environment_of_the_matrix(environment: str) -> None:
    pytest.importorskip("tox", reason="pip install tox")
    given = ("-x", f"testenv.deps+={EXAMPLE}", "-k", "deps", "commands", "skip_install")
    shown = run("-m", "tox", "config", "-e", environment, *given)
    deps = shown.partition("deps =")[2].partition("\ncommands")[0].split()
    assert deps[:2] == ["-r", "requirements.txt"] and deps[-1] == str(EXAMPLE), shown
    tests = [line for line in shown.partition("commands =")[2].splitlines() if "python -m pytest" in line]
    assert len(tests) == environment.count("-t")
    assert ["TRITON_INTERPRET=1" in line for line in tests] == [False, True][: len(tests)]


def test_the_conformance_tests_take_up_whatever_is_installed(tmp_path: Path) -> None:
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-compile", "--target", tmp_path / "site")
    run("-m", "pip", "install", *options, EXAMPLE)
    collect = ("--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    chosen = ("tests/test_conformance.py", "-k", "leaky-average")
    collected = run("-m", "pytest", *collect, *chosen, site=tmp_path / "site")
    tests = {line.partition("[")[0].rpartition("::")[2] for line in collected.splitlines() if "leaky-average" in line}
    assert {
        "test_listing_it_imports_nothing_heavy",
        "test_pieces_give_what_the_whole_gives",
        "test_a_large_change_reaches_no_earlier_token_and_no_other_row",
    } <= tests
    assert len(tests) > 25
