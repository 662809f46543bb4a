"""What stands in other columns, in other files and beside the files never decides what is read; nothing vanishes."""

import json
import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from muse_text_sources import finding

from muse_core.errors import DataError
from muse_core.testing import build_component


def source(*paths, **options):
    return build_component("source", "files", paths=[str(path) for path in paths], **options)


def read(*paths, **options):
    return [document.text for document in source(*paths, **options).documents()]


def hub(folder, **options):
    return [document.text for document in build_component("source", "hub", name=str(folder), **options).documents()]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_f2_f15_columns_that_change_their_type_late_are_passed_over(tmp_path):
    """Past the first block of 10 MB, from which ``datasets`` infers types."""
    early = [{"id": number, "url": "x" * 40, "text": f"words {number}", "score": None} for number in range(110_000)]
    path = lines(tmp_path / "train.jsonl", *early, {"id": "one", "text": "hello", "score": 0.5, "new": [1]})
    assert path.stat().st_size > 10 << 20
    assert read(path) == hub(tmp_path) == [*(row["text"] for row in early), "hello"]


def test_f2_a_text_that_is_null_at_first_is_found_later(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"body": None, "n": 1}, {"body": "found", "n": None})
    assert read(path) == ["", "found"]


@pytest.mark.parametrize(("name", "content"), [
    ("b.jsonl", b""), ("b.jsonl", b"\n\n"), ("b.json", b"[]"), ("b.csv", b""), ("b.csv", b"text\n"),
    ("b.parquet", None), ("b.jsonl.zst", None),
])
def test_f3_files_without_rows_are_no_document(tmp_path, name, content):
    lines(tmp_path / "a.jsonl", {"text": "one"})
    lines(tmp_path / "c.jsonl", {"text": "two"})
    if name.endswith("zst"):
        with pyarrow.output_stream(str(tmp_path / name), compression="zstd"):
            pass
    elif content is None:
        pyarrow.parquet.write_table(pyarrow.table({"other": pyarrow.array([], pyarrow.int64())}), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    assert read(tmp_path) == ["one", "two"]


def test_f3_an_empty_shard_of_a_local_data_set_is_no_document(tmp_path):
    lines(tmp_path / "train-1.jsonl", {"text": "one"})
    lines(tmp_path / "train-0.jsonl")
    assert hub(tmp_path) == ["one"]


def test_f10_words_that_mean_missing_elsewhere_are_texts(tmp_path):
    words = ["NA", "N/A", "None", "null", "nan", "NULL", "", "true", "007", "1e5", "2024-01-01"]
    (tmp_path / "a.csv").write_text("text,n\n" + "".join(f"{word},1\n" for word in words))
    (tmp_path / "b.tsv").write_text("n\ttext\n" + "".join(f"1\t{word}\n" for word in words))
    assert read(tmp_path) == words * 2


def test_f10_a_column_of_numbers_or_dates_is_text_where_it_is_asked_for(tmp_path):
    (tmp_path / "a.csv").write_text("number\n007\n1.50\n")
    assert read(tmp_path / "a.csv") == ["007", "1.50"]
    lines(tmp_path / "b.jsonl", {"day": "2024-01-01"}, {"day": "2024-01-02"})
    assert read(tmp_path / "b.jsonl") == ["2024-01-01", "2024-01-02"]
    (tmp_path / "c.jsonl").write_text('{"n": 1.50}\n{"n": 7}\n')
    assert read(tmp_path / "c.jsonl", text="n") == ["1.50", "7"]
    pyarrow.parquet.write_table(pyarrow.table({"n": [7, None]}), tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet", text="n") == ["7", ""]
    with pytest.raises(DataError, match=r"d\.parquet: no column of text; there are 'n' \(int64\)"):
        read(tmp_path / "d.parquet")


def test_f10_rows_without_the_column_are_rows_without_text(tmp_path):
    path = lines(tmp_path / "a.jsonl", *({"content": f"c{n}"} for n in range(3)), {"text": "t"}, {"content": None})
    assert read(path) == ["c0", "c1", "c2", "", ""]
    with pytest.raises(DataError, match="row 1: there are 'text' .str., but no 'title' as in the rows before: choose"):
        read(lines(tmp_path / "b.jsonl", {"title": "x"}, {"text": "y"}))
    assert read(tmp_path / "b.jsonl", text="text") == ["", "y"]
    with pytest.raises(DataError, match="no column 'body'; there are 'title'"):
        read(tmp_path / "b.jsonl", text="body")


def test_f12_runs_below_the_folder_are_left_out(tmp_path):
    (tmp_path / "note.txt").write_text("note")
    for mark in ("muse.lock.toml", "run.lock"):
        run = tmp_path / f"runs-{mark}" / "one"
        (run / "checkpoints" / "gen-00000001").mkdir(parents=True)
        (run / mark).write_text("")
        (run / "summary.json").write_text("{}")
        (run / "checkpoints" / "gen-00000001" / "CERTIFIED.json").write_text('{"a": "x", "b": "y"}')
    assert read(tmp_path) == read(tmp_path / "**" / "*") == ["note"]


def test_f14_hidden_folders_and_files_are_left_out(tmp_path):
    for name in ("a.txt", ".git/b.txt", ".c.txt", "sub/.ipynb_checkpoints/d.txt", "sub/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(tmp_path) == read(tmp_path / "**" / "*.txt") == read(tmp_path / "**") == ["a.txt", "sub/e.txt"]
    assert read(tmp_path / ".git") == read(tmp_path / ".g*" / "*.txt") == [".git/b.txt"]


def test_f14_a_file_is_read_once_however_many_ways_lead_to_it(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("once")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "sub" / "other loop").symlink_to(tmp_path)
    (tmp_path / "link.txt").symlink_to(tmp_path / "sub" / "a.txt")
    monkeypatch.chdir(tmp_path)
    assert read("sub/a.txt", tmp_path / "sub" / "a.txt", tmp_path, "**/*.txt", "link.txt") == ["once"]


def test_f14_names_with_colons_are_names(tmp_path):
    (tmp_path / "a::b.txt").write_text("one")
    lines(tmp_path / "zip::c.jsonl", {"text": "two"})
    assert read(tmp_path) == ["one", "two"]


def test_f31_many_small_files_are_read_without_a_loader_each(tmp_path):
    """In a process that refuses to import ``datasets``."""
    for number in range(50):
        lines(tmp_path / f"{number:03}.jsonl", {"text": f"row {number}"})
    program = f"""
import sys
sys.modules["datasets"] = None
from pathlib import Path
from muse_text_sources.files import Files
from muse_text_sources.options import FilesOptions
print([d.text for d in Files(FilesOptions(paths=({str(tmp_path)!r},)), None).documents()])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([f"row {number}" for number in range(50)])


def test_f35_zstandard_is_read_whole_or_refused(tmp_path):
    text = "".join(f"line {number}\n" for number in range(5000))
    with pyarrow.output_stream(str(tmp_path / "a.txt.zst"), compression="zstd") as file:
        file.write(text.encode())
    assert read(tmp_path) == [text]
    (tmp_path / "twice.txt.zst").write_bytes((tmp_path / "a.txt.zst").read_bytes() * 2)
    assert read(tmp_path / "twice.txt.zst") == [text * 2]
    (tmp_path / "torn.txt.zst").write_bytes((tmp_path / "a.txt.zst").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"torn\.txt\.zst: cannot be read as text"):
        read(tmp_path / "torn.txt.zst")


def test_f15_the_torn_line_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' * 12345 + '{"text": "y')
    with pytest.raises(DataError, match=r"a\.jsonl, line 12346: cannot be read as json \(Unterminated string"):
        read(path)


def test_json_over_several_lines_is_read_as_a_whole(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one"}, {"text": "two"}], indent=2))
    (tmp_path / "b.json").write_text(json.dumps({"text": "three"}, indent=2))
    assert read(tmp_path) == ["one", "two", "three"]
    (tmp_path / "c.json").write_text('[\n{"text": "x"},\n{"text" "y"}\n]')
    with pytest.raises(DataError, match=r"c\.json, line 3: "):
        read(tmp_path / "c.json")


def test_long_texts_of_a_csv_are_read(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert read(tmp_path) == ["x" * 200_000]


@pytest.mark.timeout(30)
def test_a18_pipes_and_devices_are_refused_and_left_out_of_folders(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "a.txt").write_text("text")
    assert read(tmp_path) == read(tmp_path / "*.txt") == ["text"]
    for path in (tmp_path / "pipe.txt", "/dev/zero"):
        with pytest.raises(DataError, match=r"data\.paths\[0\]: .* is a pipe or a device, not a file"):
            source(path)
    lines(tmp_path / "train.jsonl", {"text": "one"})
    assert build_component("source", "hub", name=str(tmp_path)).fingerprint()


def test_a18_folders_of_very_many_files_say_so(tmp_path, monkeypatch):
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text("x")
    monkeypatch.setattr(finding, "MOST_ENTRIES", 29)
    for path in (tmp_path, tmp_path / "**" / "*.md"):
        with pytest.raises(DataError, match="holds more than 29 files and folders: name a folder further down"):
            source(path)


def test_a18_folders_nested_deep_are_read_or_named(tmp_path):
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("dd", dir_fd=place)
        inner = os.open("dd", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    (tmp_path / "a.txt").write_text("x")
    try:
        with pytest.raises(DataError, match="cannot be read .File name too long."):
            source(tmp_path)
    finally:  # pytest's own cleaning recurses
        subprocess.run(["rm", "-r", str(tmp_path / "dd")], check=True)


def test_f12_paths_without_a_recipe_are_looked_at_too():
    for path, said in (("", "is empty: name a file"), ("~nobody-of-this-name/x", "leads to no file")):
        with pytest.raises(DataError, match=rf"data\.paths\[0\]: .*{said}"):
            finding.find([path])
