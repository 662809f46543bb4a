"""Metrics and events survive crashes, are numbered without gaps and are never rewritten."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muse_core.errors import StorageError
from muse_core.metrics.jsonl import Records, own_rows, read_rows
from muse_core.selftest.reliability.disks import FailingDisk, VolatileDisk
from muse_core.training.train_state import Incidents


def write(path, count, first=0):
    records = Records(path, VolatileDisk())
    for step in range(first, first + count):
        records.metrics({"event": "train", "step": step, "loss": 0.1 * step})
    records.close()
    return records


def rows(path, name="metrics.jsonl"):
    return list(read_rows(path / name))


def test_attempts_and_sequence_go_on_where_the_last_process_stopped(tmp_path):
    write(tmp_path, 3)
    write(tmp_path, 2, first=2)
    found = rows(tmp_path)
    assert [row["sequence"] for row in found] == [0, 1, 2, 3, 4]
    assert [row["attempt"] for row in found] == [1, 1, 1, 2, 2]
    assert [row["step"] for row in found] == [0, 1, 2, 2, 3], "the repeated step stays in both attempts"


def test_an_attempt_that_only_left_an_event_counts(tmp_path):
    Records(tmp_path, VolatileDisk()).event({"event": "start"})
    assert Records(tmp_path, VolatileDisk()).attempt == 2


def test_what_is_not_finite_is_spelled_and_a_double_survives_to_the_last_bit(tmp_path):
    records = Records(tmp_path, VolatileDisk())
    records.metrics({"loss": float("nan"), "norms": [float("inf"), float("-inf")], "rate": 0.1 + 0.2})
    (row,) = rows(tmp_path)
    assert row["loss"] == "nan"
    assert row["norms"] == ["inf", "-inf"]
    assert row["rate"] == 0.1 + 0.2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.binary(max_size=30), st.integers(0, 400))
def test_any_tail_is_cut_back_to_the_last_whole_row(tmp_path_factory, count, garbage, removed):
    path = tmp_path_factory.mktemp("torn")
    write(path, count)
    file = path / "metrics.jsonl"
    whole = file.read_bytes()
    torn = whole[: max(0, len(whole) - removed)] + garbage
    file.write_bytes(torn)
    intact = whole[: len(whole) - removed].count(b"\n") if removed < len(whole) else 0
    records = Records(path, VolatileDisk())
    after = rows(path)
    assert len(after) >= intact
    assert file.read_bytes() == torn[: len(torn) - records.cut_bytes]
    records.metrics({"step": 99})
    assert [row["sequence"] for row in rows(path)] == list(range(len(after) + 1))


def test_zeros_after_a_power_failure_are_cut_even_when_they_span_blocks(tmp_path):
    write(tmp_path, 3)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b"\n" + bytes(300_000) + b"\n{")
    assert Records(tmp_path, VolatileDisk()).cut_bytes == 300_003
    assert file.read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    write(tmp_path, 3)
    file = tmp_path / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([lines[0], b"damage", *lines[2:]]))
    with pytest.raises(StorageError, match=r"metrics\.jsonl:2: this line is damaged"):
        rows(tmp_path)


def test_reading_leaves_out_a_torn_last_line(tmp_path):
    write(tmp_path, 3)
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-2])
    assert len(rows(tmp_path)) == 2


def test_no_row_is_glued_to_half_a_row(tmp_path):
    disk = FailingDisk()
    records = Records(tmp_path, disk)
    records.metrics({"step": 0})
    disk.fail_at, disk.short, disk.error = len(disk.names), True, errno.ENOSPC
    for _ in range(2):
        with pytest.raises(StorageError, match="No space left on device"):
            records.metrics({"step": 1})
    assert (tmp_path / "metrics.jsonl").read_bytes().count(b"step") <= 2
    Records(tmp_path, VolatileDisk()).metrics({"step": 1})
    assert [row["step"] for row in rows(tmp_path)] == [0, 1]


def test_events_are_synced_one_by_one_and_metrics_together(tmp_path):
    disk = FailingDisk()
    records = Records(tmp_path, disk)

    def syncs():
        return [name.rpartition("/")[2] for name in disk.names if name.startswith("fsync")]

    before = len(syncs())
    records.metrics({"step": 0})
    assert len(syncs()) == before
    records.event({"event": "start"})
    assert syncs()[before:] == ["events.jsonl"]
    records.sync()
    assert syncs()[before:] == ["events.jsonl", "metrics.jsonl"]


def test_rows_of_others_are_passed_over_and_heard_of(tmp_path):
    records = Records(tmp_path)
    good = {"event": "train", "step": 1, "perplexity": float("nan")}
    words, lists = good | {"step": "2"}, good | {"perplexity": [1]}
    for row in (good, {"event": "train"}, {"event": 5}, {"kind": "x"}, words, lists, {"event": "mine"}):
        records.metrics(row)
    records.close()
    file = tmp_path / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:6], b'{"foreign":1}\n', b"[1,2]\n", *lines[6:]]))
    foreign: list[int] = []
    kept = list(own_rows(file, foreign))
    assert [row["event"] for row in kept] == ["train", "mine"] and foreign == [2, 3, 4, 5, 6, 7, 8]
    assert len(list(read_rows(file))) == 7, "JSON that is no row is none of any reader's"


WORDS = {"step": "4", "onset": 1, "target": 0, "data": [0, 1], "generation": 1, "through": 2}


@pytest.mark.parametrize("row", [{}, {"step": 4}, WORDS])
def test_a_rollback_that_does_not_say_what_it_undid_is_refused(row):
    with pytest.raises(StorageError, match="sequence 3 is a rollback"):
        Incidents(0, [{"event": "incident", "stage": 0, "sequence": 3} | row])
