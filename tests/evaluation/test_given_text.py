"""Text files that ``muse eval`` is given."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from muse_core.cli import muse

pytestmark = pytest.mark.usefixtures("one_thread")


def command(*arguments: Any) -> Any:
    return CliRunner().invoke(muse, ["eval", *map(str, arguments)])


def test_line_ends_of_windows_and_a_link_change_no_number(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_bytes(b"Some words.\n\nOthers.\n" * 20)
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbf" + b"Some words.\r\n\r\nOthers.\r\n" * 20)
    (tmp_path / "link.txt").symlink_to("windows.txt")
    plain, *others = (
        command(finished_run, "--suite", "held-out", "--text", tmp_path / name, "--documents", "paragraph", "--json")
        for name in ("plain.txt", "windows.txt", "link.txt")
    )
    assert json.loads(plain.stdout)[0]["documents"] == 21
    assert [other.stdout for other in others] == [plain.stdout] * 2


def test_few_documents_are_told_where_there_is_an_interval(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("one line")
    (tmp_path / "long.txt").write_text("one line\n" * 40)
    short, long = (
        command(finished_run, "--suite", "held-out", "--text", tmp_path / name).stdout
        for name in ("short.txt", "long.txt")
    )
    assert "nothing, there is one window" in short and "too narrow" not in short
    assert "intervals are too narrow" in long


def test_what_is_packed_is_said_to_be(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "book.gz").write_bytes(gzip.compress(b"text"))
    asked = command(finished_run, "--text", tmp_path / "book.gz")
    assert asked.exit_code == 3 and asked.stderr == f"{tmp_path}/book.gz: is compressed by gzip - unpack it first\n"


def test_documents_of_no_text_are_refused(finished_run: Path) -> None:
    asked = command(finished_run, "--suite", "held-out", "--documents", "line")
    assert asked.exit_code == 2 and "--documents: says what a document of --text is - give --text" in asked.stderr
