"""``--device`` on the command line: a mistake is told by the option that has it, before anything is read."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from muse_core.cli import muse
from muse_core.cli.run import main

COMMANDS = (
    (main, ("r.toml",)), (muse, ("cost", "r.toml")), (muse, ("gates", "r.toml")), (muse, ("eval", "run")),
    (muse, ("generate", "run")), (muse, ("diagnose", "run")), (muse, ("compress", "run")), (muse, ("report", "run")),
)


@pytest.mark.parametrize(("command", "arguments"), COMMANDS, ids=[given[0] for _, given in COMMANDS])
@pytest.mark.parametrize("device", ["gpu", "", "cuda:", "cuda:1;", "cpu "])
def test_what_is_no_device_is_told_of_the_option(command, arguments, device: str) -> None:
    ended = CliRunner().invoke(command, [*arguments, "--device", device])
    assert ended.exit_code == 2
    said = f"'--device': {device!r} is no device: give auto, cpu, cuda or cuda:<index>"
    assert said in " ".join(ended.output.split())


def test_a_port_is_of_serve(tmp_path) -> None:
    ended = CliRunner().invoke(muse, ["report", str(tmp_path), "--port", "80"])
    assert ended.exit_code == 2 and "--port is that of --serve" in ended.output
