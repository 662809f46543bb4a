"""Data sets of the hub: their splits, a local folder in their form, and what is said without a network."""

import json
import os
import subprocess
import sys

import datasets
import pytest
from muse_text_sources.hub import Hub
from muse_text_sources.options import HubOptions

from muse_core.errors import DataError
from muse_core.testing import build_component


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "validation", "test"):
        rows = ({"text": f"{split} {number}"} for number in range(4))
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def read(folder, **options):
    documents = build_component("source", "hub", name=str(folder), **options).documents()
    return [(document.text, document.split) for document in documents]


def test_its_own_splits_stay(folder):
    expected = [(f"{split} {number}", split) for split in ("train", "validation", "test") for number in range(4)]
    assert sorted(read(folder)) == sorted(expected)


def test_a_data_set_of_training_text_alone_is_left_to_the_shares(folder):
    (folder / "validation.jsonl").unlink()
    (folder / "test.jsonl").unlink()
    assert read(folder) == [(f"train {number}", None) for number in range(4)]


def test_one_split_is_divided_by_the_shares(folder):
    assert read(folder, split="test", limit=2) == [("test 0", None), ("test 1", None)]


def test_conversations_are_read_turn_by_turn(tmp_path):
    """The schema of HuggingFaceH4/ultrachat_200k, with its names of splits."""
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So.\nThere."}]
    row = {"prompt": "Why?", "prompt_id": "f0", "messages": turns}
    (tmp_path / "sft.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train_sft\n    path: sft.jsonl\n---\n"
    )
    expected = [("user: Why?\n\nassistant: So.\nThere.", None)]
    assert read(tmp_path, split="train_sft", text="messages") == expected
    with pytest.raises(DataError, match=r"several columns of text; .*'messages' \(list\): choose one with data.text"):
        read(tmp_path, split="train_sft")


def test_what_save_to_disk_wrote_is_read(tmp_path):
    """Only the rows that the data set names: ``datasets`` leaves files of its cache beside them."""
    rows = datasets.Dataset.from_dict({"text": [f"row {number}" for number in range(8)], "n": list(range(8))})
    rows.save_to_disk(tmp_path / "rows")
    rows.train_test_split(2, shuffle=False).save_to_disk(tmp_path / "splits")
    datasets.load_from_disk(tmp_path / "splits")["train"].map(lambda row: {"text": row["text"].upper()})
    assert list((tmp_path / "splits" / "train").glob("cache-*.arrow"))
    texts = [f"row {number}" for number in range(8)]
    assert read(tmp_path / "rows") == [(text, None) for text in texts]
    assert read(tmp_path / "rows", text="text", limit=2) == [(text, None) for text in texts[:2]]
    assert sorted(read(tmp_path / "splits")) == [(text, "train" if n < 6 else "test") for n, text in enumerate(texts)]
    with pytest.raises(DataError, match="no column 'body'; there are 'text' \\(str\\), 'n' \\(int\\)"):
        read(tmp_path / "rows", text="body")
    with pytest.raises(DataError, match="without configurations - leave out data.configuration"):
        read(tmp_path / "rows", configuration="small")
    for path in (tmp_path / "rows", tmp_path / "rows" / "data-00000-of-00001.arrow", tmp_path / "splits"):
        with pytest.raises(DataError, match='save_to_disk wrote: read it with { use = "hub"'):
            list(build_component("source", "files", paths=[str(path)]).documents())


def test_an_unknown_split_is_refused_with_those_there_are(folder):
    with pytest.raises(DataError, match="no split 'dev'; there are "):
        read(folder, split="dev")


def test_the_fingerprint_follows_content_and_options(folder):
    one = build_component("source", "hub", name=str(folder)).fingerprint()
    assert build_component("source", "hub", name=str(folder), limit=1).fingerprint() != one
    (folder / "train.jsonl").write_text('{"text": "changed"}\n')
    assert build_component("source", "hub", name=str(folder)).fingerprint() != one


def test_a_full_commit_identifies_text_without_a_network(tmp_path):
    commit = "0123456789" * 4
    hub = build_component("source", "hub", name="someone/something", revision=commit)
    assert isinstance(hub, Hub) and commit in hub.fingerprint()


def test_without_a_network_the_local_alternative_is_named(tmp_path):
    """In a process of its own, which is told that the hub is at a closed port."""
    program = f"""
from pathlib import Path
from {Hub.__module__} import Hub
from {HubOptions.__module__} import HubOptions
from muse_core.errors import DataError
from muse_core.data.sources import SourceContext
hub = Hub(HubOptions(name="someone/something"), SourceContext(cache=Path({str(tmp_path)!r})))
for ask in (hub.fingerprint, lambda: list(hub.documents())):
    try:
        ask()
    except DataError as error:
        print(error)
"""
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    answer = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert answer.returncode == 0 and not answer.stderr, answer.stderr
    first, second = answer.stdout.splitlines()
    assert first == second
    assert "data set 'someone/something': the hub does not give it" in first
    assert 'data = { use = "files", paths = ["..."] }' in first
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "a cache was written"


@pytest.mark.parametrize("name", ["./nothere", "../nothere", "/nowhere/at/all", "~/nothere-of-muse", "./file.jsonl"])
def test_a_path_without_a_folder_is_no_name_on_the_hub(tmp_path, monkeypatch, name):
    (tmp_path / "file.jsonl").write_text('{"text": "one"}\n')
    monkeypatch.chdir(tmp_path)
    hub = build_component("source", "hub", name=name)
    for ask in (hub.fingerprint, lambda: list(hub.documents())):
        with pytest.raises(DataError, match=f"data.name: '{name}': there is no such folder - write where it is"):
            ask()
