"""A source that raises or gives what its contract does not have is named, with what differs; exit code 5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from muse_core.component import Use
from muse_core.contracts import Batch, Document, Tokens
from muse_core.data.documents import spool
from muse_core.data.sources import open_source
from muse_core.errors import DataError, PluginError, RecipeError

USE = Use(
    kind="source", name="odd", distribution="odd-texts", version="1.0", implementation=f"{__name__}:Odd", options={}
)


class Odd:
    """A source whose answers the options give."""

    vocabulary_size = 7

    def __init__(self, options: dict[str, Any], context: Any):
        if "built" in options:
            options["built"]()
        self.options = options

    def fingerprint(self) -> Any:
        return self.options.get("fingerprint", lambda: "v1")()

    def documents(self) -> Any:
        return self.options.get("documents", lambda: iter([Document("some text", "1"), Document("more", "2")]))()


class Task(Odd):
    def examples(self, split: str, indices: Any, length: int) -> Any:
        ids = torch.zeros(len(indices), length, dtype=torch.long)
        mask = torch.ones_like(ids, dtype=torch.bool)
        return self.options["change"](Batch(ids, ids + 1, mask, Tokens(torch.arange(length).expand_as(ids))))


def fail(error: BaseException) -> Callable[[], Any]:
    def go() -> Any:
        raise error

    return go


def some_then(error: BaseException) -> Callable[[], Any]:
    def go() -> Any:
        yield Document("some text", "1")
        raise error

    return go


@pytest.mark.parametrize(
    "options, said",
    [
        ({"built": fail(KeyError("folder"))}, "raised when built: KeyError: 'folder' at "),
        ({"fingerprint": fail(TypeError("no"))}, "raised when asked for its fingerprint: TypeError: no at "),
        ({"fingerprint": lambda: None}, "does not keep the contract: its fingerprint is None where a text is due"),
        ({"fingerprint": lambda: ""}, "its fingerprint is '' where a text is due"),
        ({"documents": fail(OSError("no disk"))}, "raised when asked for documents: OSError: no disk at "),
        ({"documents": lambda: None}, "raised when asked for documents: TypeError: 'NoneType' object is not iterable"),
        ({"documents": some_then(ValueError("bad"))}, "raised when reading document 1: ValueError: bad at "),
        ({"documents": some_then(StopIteration())}, "raised when reading document 1: RuntimeError: generator raised"),
        ({"documents": lambda: ["text"]}, "document 0 is a str where contracts.Document is due"),
        ({"documents": lambda: [Document("a", "1"), Document(b"b", "2")]}, "the text of document 1 is a bytes"),
        ({"documents": lambda: [Document("a", "1", source=3)]}, "the source of document 0 is a int"),
    ],
)
def test_a_source_of_text(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(PluginError) as caught:
        source = open_source(Use(**{**vars_of(USE), "options": options}), tmp_path)
        source.fingerprint()
        spool(source, tmp_path / "text", lambda *arguments: None)
    assert str(caught.value).startswith("source 'odd' of odd-texts 1.0 ") and said in str(caught.value)
    assert caught.value.exit_code == 5


def vars_of(use: Use) -> dict[str, Any]:
    return {name: getattr(use, name) for name in ("kind", "name", "distribution", "version", "implementation")}


def test_what_a_source_says_itself_stays_and_a_right_one_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^the disk is gone$"):
        open_source(Use(**vars_of(USE), options={"built": fail(DataError("the disk is gone"))}), tmp_path)
    source = open_source(USE, tmp_path)
    assert source.fingerprint() == "v1" and not hasattr(source, "examples")
    assert len(spool(source, tmp_path / "text", lambda *arguments: None)) == 2


TASK = {**vars_of(USE), "implementation": f"{__name__}:Task"}


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda batch: None, "examples returned a NoneType where contracts.Batch is due"),
        (lambda batch: batch._replace(inputs=batch.inputs[:, 1:]), "inputs of its examples is torch.int64 of shape (3"),
        (lambda batch: batch._replace(labels=batch.labels.int()), "labels of its examples is torch.int32 of shape"),
        (lambda batch: batch._replace(labels=None), "labels of its examples is NoneType of shape () where int64"),
        (lambda batch: batch._replace(loss_mask=batch.labels), "loss_mask of its examples is torch.int64 of shape"),
        (lambda batch: batch._replace(inputs=batch.inputs + 7), "inputs of its examples has the token 7, outside its"),
        (lambda batch: batch._replace(labels=batch.labels - 2), "labels of its examples has the token -1, outside its"),
        (lambda batch: batch._replace(tokens=Tokens(torch.zeros(3))), "tokens.positions of its examples is"),
    ],
)
def test_a_task(tmp_path: Path, change: Callable[[Batch], Any], said: str) -> None:
    source: Any = open_source(Use(**TASK, options={"change": change}), tmp_path)
    with pytest.raises(PluginError) as caught:
        source.examples("train", np.arange(3), 5)
    assert str(caught.value).startswith("source 'odd' of odd-texts 1.0 ") and said in str(caught.value)


def test_a_label_that_does_not_count_may_be_anything(tmp_path: Path) -> None:
    def change(batch: Batch) -> Batch:
        mask = batch.loss_mask.clone()
        mask[:, 0] = False
        labels = batch.labels.clone()
        labels[:, 0] = -100
        return batch._replace(labels=labels, loss_mask=mask)

    source: Any = open_source(Use(**TASK, options={"change": change}), tmp_path)
    assert source.vocabulary_size == 7
    assert source.examples("train", np.arange(3), 5).inputs.shape == (3, 5)


class OnlyTask:
    """A task as its contract has it: without documents."""

    vocabulary_size = 7

    def __init__(self, options: dict[str, Any], context: Any):
        pass

    def fingerprint(self) -> str:
        return "v1"

    def examples(self, split: str, indices: Any, length: int) -> Any:
        raise AssertionError("nobody asks for examples here")


def test_a_task_that_is_asked_for_text_is_a_mistake_of_the_recipe(tmp_path: Path) -> None:
    """As one among the sources of a mixture, where its plugin was blamed for an AttributeError."""
    named = {**vars_of(USE), "implementation": f"{__name__}:OnlyTask"}
    source = open_source(Use(**named, options={}, path="data.sources[1]"), tmp_path)
    with pytest.raises(RecipeError, match=r"^data\.sources\[1\]: source 'odd' of odd-texts 1\.0 is a task, which"):
        spool(source, tmp_path / "text", lambda *arguments: None)
