"""Local files of every form become documents; what cannot be read is refused in a sentence."""

import bz2
import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from muse_core.data.plain_text import read_texts
from muse_core.errors import DataError
from muse_core.testing import build_component


def read(*paths, **options):
    """Texts of the documents."""
    return [document.text for document in source(*paths, **options).documents()]


def source(*paths, **options):
    return build_component("source", "files", paths=[str(path) for path in paths], **options)


def test_plain_text_is_one_document_a_file(tmp_path):
    (tmp_path / "b.txt").write_text("second\n\nfile\n")
    (tmp_path / "a.md").write_text("# first")
    (tmp_path / "left-out.bin").write_bytes(b"\xff")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.rst").write_text("third")
    assert read(tmp_path) == ["# first", "second\n\nfile\n", "third"]
    assert read(tmp_path / "**" / "*.rst", tmp_path / "a.md", tmp_path) == ["third", "# first", "second\n\nfile\n"]


def test_plain_text_is_cut_as_asked(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    assert read(tmp_path / "a.txt", documents="paragraph") == ["one\ntwo", "three\n"]
    assert read(tmp_path / "a.txt", documents="line") == ["one", "two", "", "three"]


@pytest.mark.parametrize("documents", ["file", "paragraph", "line"])
@pytest.mark.parametrize("text", ["", "\n\n\n\n"])
def test_a_file_without_text_is_an_empty_document_of_its_name(tmp_path, documents, text):
    """So that what says that there is no text, or how many were left out, can name it."""
    file = tmp_path / "a.txt"
    file.write_text(text)
    found = list(source(file, documents=documents).documents())
    assert found and not "".join(one.text for one in found).strip() and str(file) in found[0].name


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\ufeff"), min_size=1))
def test_any_text_comes_through_unchanged(tmp_path, text):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8", newline="")
    (tmp_path / "a.json").write_text(json.dumps([{"text": text}]))
    assert read(tmp_path / "a.txt", tmp_path / "a.json") == [text, text]


@pytest.mark.parametrize("documents", ["file", "paragraph", "line"])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("ab \n\n\r\f\x85\u2028\ufeff"), min_size=1))
@example(text="\ufeffone\r\ntwo\r\n\r\n\r\nthree \n \nfour\rfive\ffive")
def test_commands_read_plain_text_as_training_does(tmp_path, documents, text):
    """``muse eval --text`` kept Windows' line ends and cut at form feeds, and gave other bits per byte."""
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode())
    trained_on = [part for part in read(file, documents=documents) if part]
    if "".join(trained_on).strip():
        assert read_texts([file], documents) == trained_on


def test_tables_are_read_by_column(tmp_path):
    rows = [{"body": "one", "n": 1}, {"body": "two", "n": 2}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c.csv").write_text("body,n\none,1\ntwo,2\n")
    (tmp_path / "d.tsv").write_text("body\tn\none\t1\ntwo\t2\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "e.parquet")
    assert read(tmp_path) == ["one", "two"] * 5
    assert read(tmp_path, text="body") == ["one", "two"] * 5


def test_compressed_files_are_read(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one", mtime=0))
    (tmp_path / "b.jsonl.xz").write_bytes(lzma.compress(b'{"text": "two"}\n'))
    (tmp_path / "c.md.bz2").write_bytes(bz2.compress(b"three"))
    assert read(tmp_path) == ["one", "two", "three"]


def test_names_that_look_like_patterns_are_names(tmp_path):
    for name in ("a [1].txt", "b*c.txt", "d?.txt", "ü #%20.txt"):
        (tmp_path / name).write_text(name)
    assert read(tmp_path) == ["a [1].txt", "b*c.txt", "d?.txt", "ü #%20.txt"]
    assert read(tmp_path / "a [1].txt") == ["a [1].txt"]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_conversations_are_read_where_they_are_named_and_not_passed_over_for_an_id(tmp_path, suffix):
    """A run trained on ids of 36 characters, since no other column held strings."""
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So.\nThere."}]
    rows = [{"id": "f0", "messages": turns}, {"id": "f1", "messages": None}, {"id": "f2", "messages": turns[:1]}]
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    else:
        lines = "\n".join(map(json.dumps, rows))
        (tmp_path / f"a.{suffix}").write_text(lines if suffix == "jsonl" else json.dumps(rows))
    assert read(tmp_path, text="messages") == ["user: Why?\n\nassistant: So.\nThere.", "", "user: Why?"]
    assert read(tmp_path, text="id") == ["f0", "f1", "f2"]
    with pytest.raises(DataError, match=r"several columns of text; there are 'id' .*'messages' .*choose one"):
        read(tmp_path)


@pytest.mark.parametrize("none", [None, []])
def test_an_id_is_not_taken_for_the_text_since_the_first_conversation_is_empty(tmp_path, none):
    rows = [{"id": "f0", "messages": none}, {"id": "f1", "messages": [{"role": "user", "content": "Why?"}]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"row 1: several columns of text; .*'messages' .*rows before had 'id' alone"):
        read(tmp_path)
    assert read(tmp_path, text="id") == ["f0", "f1"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_conversation_without_turns_is_an_empty_text(tmp_path, suffix):
    rows = [{"messages": [{"role": "user", "content": "Why?"}]}, {"messages": []}]
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    else:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(tmp_path, text="messages") == ["user: Why?", ""]


def test_a_turn_without_content_is_named(tmp_path):
    rows = [{"messages": [{"role": "user", "content": None}]}, {"messages": [{"role": "user", "content": "x"}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 0: a turn of column 'messages' lacks its role or content"):
        read(tmp_path, text="messages")


def test_missing_values_are_empty_texts(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": null}\n')
    assert read(tmp_path) == ["one", ""]


def test_documents_are_named_by_file_and_row(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n{"text": "four"}\n')
    names = [document.name.removeprefix(f"{tmp_path}/") for document in source(tmp_path).documents()]
    assert names == ["a.txt", "b.txt", "c.jsonl, row 0", "c.jsonl, row 1"]


def test_the_fingerprint_follows_content_and_reading_not_the_place(tmp_path):
    for folder, text in (("one", "same"), ("two", "same"), ("three", "other")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(text)
    one, two, three = (source(tmp_path / name).fingerprint() for name in ("one", "two", "three"))
    assert one == two != three
    assert source(tmp_path / "one", documents="line").fingerprint() != one


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        ("a.txt", b"fine\n\xff\xfe", {}, r"a\.txt.*: not UTF-8 \(invalid start byte at byte 5, line 2\): convert it"),
        ("a.txt", b"fine\n" * 400_000 + b"caf\xe9!", {"documents": "line"}, r"at byte 2000003, line 400001\)"),
        ("a.txt", b"x" * ((1 << 20) - 1) + "é".encode() + b"\n\xff", {}, r"at byte 1048578, line 2\)"),
        ("a.txt", b"fine\ncaf\xe9", {}, r"unexpected end of data at byte 8, line 2\)"),
        ("a.jsonl", b'{"text": "x"}\n' * 9999 + b'{"text": "\xe9t"}\n', {}, r"at byte 139996, line 10000\)"),
        ("a.csv.gz", gzip.compress(b"text\n" * 100_000 + b"\xe9t", mtime=0), {}, r"at byte 500000, line 100001\)"),
        ("a.json", b"{not json", {}, r"a\.json, line 1: cannot be read as json"),
        ("a.jsonl", b'{"text": "x"}\n{"te', {}, r"a\.jsonl, line 2: cannot be read as json"),
        ("a.parquet", b"PAR1 nothing", {}, r"a\.parquet: cannot be read as parquet"),
        ("a.txt.gz", b"not gzip", {}, r"a\.txt\.gz.*: cannot be read as text"),
        ("a.txt.gz", gzip.compress(b"text" * 999, mtime=0)[:-9], {}, r"a\.txt\.gz.*: cannot be read as text"),
        ("a.txt.xz", lzma.compress(b"text" * 999)[:-30] + b"x" * 30, {}, r"a\.txt\.xz.*: cannot be read as text"),
        (
            "a.csv",
            b"n,m\n1,2\n",
            {},
            r"several columns of text; there are 'n' \(str\), 'm' \(str\): choose one",
        ),
        ("a.csv", b"a,b\nx,y\n", {}, r"several columns of text; there are 'a' \(str\), 'b' \(str\)"),
        ("a.csv", b"a,b\nx,y\n", {"text": "c"}, r"no column 'c'; there are 'a' \(str\), 'b' \(str\)"),
        ("a.jsonl", b'{"a": "x", "b": true}\n', {"text": "b"}, r"column 'b' holds bool, not text"),
        ("a.csv", b'a\n"x', {}, r"a\.csv, line 2: cannot be read as csv"),
        ("a.csv", b"a,b\nx,y\nx,y,z\n", {"text": "a"}, r"a\.csv, line 3: .*3 values under 2 columns"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, options, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as refused:
        read(tmp_path / name, **options)
    assert refused.value.exit_code == 3


def test_the_bad_file_among_many_is_named(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text("fine")
    (tmp_path / "13.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"13\.txt: not UTF-8"):
        read(tmp_path)


def test_every_missing_path_is_listed(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("there")
    with pytest.raises(DataError) as refused:
        source(tmp_path / "nowhere", tmp_path / "a.txt", tmp_path / "empty", tmp_path / "*.zip")
    sentences = str(refused.value).splitlines()
    assert [sentence.split(":")[0] for sentence in sentences] == ["data.paths[0]", "data.paths[2]", "data.paths[3]"]
    reasons = ["it does not exist", "the folder holds none that ends in .csv, ", "no file matches this pattern"]
    assert all(f"leads to no file of text: {why}" in sentence for why, sentence in zip(reasons, sentences, strict=True))
