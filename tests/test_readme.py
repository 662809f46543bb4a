"""The README's plugin, installed from the README's text by pip and held to the contract by the README's test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from muse_core.testing import warm

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = ("pyproject.toml", "muse_shift/__init__.py", "muse_shift/layer.py", "test_shift.py")


def blocks() -> list[str]:
    return re.findall(r"```(?:toml|python)\n(.*?)```", README, flags=re.DOTALL)


def test_the_plugin_has_forty_lines() -> None:
    lines = [line for block in blocks()[1:3] for line in block.splitlines() if line.strip()]
    assert len(lines) <= 40


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip installed what the README writes."""
    folder = tmp_path_factory.mktemp("readme")
    assert len(blocks()) == len(FILES)
    for name, text in zip(FILES, blocks()):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    target = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", target]
    subprocess.run([*pip, folder], check=True, timeout=120)
    return target


def test_the_plugin_keeps_the_contract(site: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shift.py"]
    ended = warm.run(
        pytest_, cwd=site.parent, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"\d{2,} passed", ended.stdout), ended.stdout


def test_the_two_commands_are_one_line_each() -> None:
    commands = [line.strip() for line in README.splitlines() if re.match(r" {4}pip install", line)]
    assert commands == [
        "pip install -r requirements.txt && muse-run recipes/phase2_base.toml",
        "pip install tox && tox run",
    ]
    assert commands[1] in (ROOT / ".ci" / "run").read_text()
    assert (ROOT / "recipes" / "phase2_base.toml").is_file()
