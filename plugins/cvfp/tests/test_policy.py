"""Validation text that training has not seen, in tokens that it has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from muse_cvfp.asked import contextual
from muse_cvfp.policy import PASSAGE, Seen, choose
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from muse_core.data.corpus import open_corpus
from muse_core.data.token_files import Split
from muse_core.data.tokenizers import ByteTokenizer
from muse_core.errors import DataError, RecipeError
from muse_core.recipe import check_table
from muse_core.testing.building import build_component

FIRST = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness. "
OTHER = "Call me Ishmael. Some years ago, with little money in my purse, I thought I would sail about a little. "


def split(name: str, *texts: str) -> Split:
    pieces = [np.concatenate(([256], ByteTokenizer().encode(text))) for text in texts]
    starts = np.cumsum([0, *(len(piece) for piece in pieces[:-1])])
    tokens = np.concatenate((*pieces, [256])).astype(np.uint16)
    return Split(name=name, tokens=tokens, starts=starts, separator=256, num_bytes=len(tokens))


def seen(*texts: str) -> Seen:
    return Seen(split("train", *texts), ByteTokenizer())


def test_a_shared_passage_is_named() -> None:
    with pytest.raises(DataError, match=r"validation document 1, token 0: .* 'It was the best .*of times, it'"):
        choose(split("validation", OTHER, "so, a sail. " + FIRST * 2), seen(FIRST, OTHER[::-1]), 150, refuse=True)


def test_twelve_words_are_allowed_and_thirteen_are_not() -> None:
    words = FIRST.split()
    held = seen(FIRST)
    for count, kept in ((12, True), (13, False)):
        text = " ".join(("age of of age", *words[3 : 3 + count], "it it of it"))
        ids = ByteTokenizer().encode(text)
        assert (held.offence(ids.astype(np.int64)) is None) == kept


def test_a_token_that_training_lacks_is_named() -> None:
    with pytest.raises(DataError, match=r"token 90 \(b'Z'\) does not occur in the training text"):
        choose(split("validation", "a Z b"), seen("a b"), 3, refuse=True)


def test_leaving_out_takes_what_follows_and_says_why() -> None:
    train = seen(FIRST * 3)
    good = "it was the age of it was wisdom. " * 40
    chosen = choose(split("validation", FIRST, good), train, 2 * PASSAGE, refuse=False)
    assert len(chosen.tokens) == 2 * PASSAGE + 1 and list(chosen.starts) == [0]
    assert len(chosen.left_out) == 1 and "It was the best" in chosen.left_out[0]
    assert ByteTokenizer().decode(chosen.tokens[1:]) == good[: 2 * PASSAGE]


def test_a_run_over_the_edge_of_passages_is_found() -> None:
    """13 words that begin in one passage and end in the next."""
    filler = "the age of it "
    shared = " ".join(FIRST.split()[:13]) + " "
    text = filler * 16 + shared + filler * 30
    assert len(filler) * 16 + 13 < PASSAGE - 1 < len(filler) * 16 + len(shared) - 13
    with pytest.raises(DataError, match="document 0, token 256: .* the same 13 words in a row: 'It was the best"):
        choose(split("validation", text), seen(FIRST), len(text) - 10, refuse=True)
    assert len(choose(split("validation", filler * 60), seen(FIRST), 700, refuse=True).tokens) == 701


def test_too_little_text_is_a_sentence() -> None:
    with pytest.raises(DataError, match="fewer than the 501 wanted: lower fixed-point.validation_tokens"):
        choose(split("validation", OTHER), seen(OTHER.upper() + OTHER[::-1]), 500, refuse=False)


def test_auto_split_is_refused_with_the_alternative() -> None:
    with pytest.raises(RecipeError, match="auto_split is refused.*data.validation, data.test and data.split_seed"):
        build_component("stage", "fixed-point", auto_split=True)


def test_the_stages_refuse_another_model() -> None:
    table = {"name": "x", "model": {"block": ["feed-forward"]}, "stages": ["fixed-point"]}
    with pytest.raises(RecipeError, match='trains the model cvfp, not stack: write model.use = "cvfp"'):
        check_table(table)


def test_a_model_that_processes_have_parts_of_is_refused() -> None:
    model = build_component("model", "cvfp", {"width": 8, "depth": 1})
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        whole = contextual(model, "token-embeddings").start
        model.start = torch.nn.Parameter(distribute_tensor(whole.detach(), init_device_mesh("cpu", (1,)), [Shard(0)]))
        with pytest.raises(RecipeError, match="parallel.shard: token-embeddings reads parts of the model"):
            contextual(model, "token-embeddings")
    finally:
        dist.destroy_process_group()


def test_the_policy_holds_for_conversations_in_the_form_of_ultrachat(tmp_path: Path) -> None:
    """A local data set of the schema of HuggingFaceH4/ultrachat_200k through the source hub: documents are divided
    before tokenising, and a conversation that occurs on both sides is named."""
    rng = np.random.default_rng(0)
    words = "one two three four five six seven eight nine ten red green blue big small far near old new".split()

    def turns() -> list[dict[str, str]]:
        return [
            {"role": role, "content": " ".join(rng.choice(words, 40))} for role in ("user", "assistant") * 2
        ]

    rows = []
    for number in range(40):
        messages = turns()
        rows.append({"prompt": messages[0]["content"], "prompt_id": f"{number:x}", "messages": messages})
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train_sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train_sft\n    path: train_sft.jsonl\n---\n"
    )
    data = {"use": "hub", "name": str(folder), "split": "train_sft", "text": "messages", "tokenizer": "bytes",
            "validation": 0.2, "test": 0.1, "cache": str(tmp_path / "cache")}
    table = {"name": "x", "data": data, "model": {"use": "cvfp"}, "stages": ["fixed-point"]}
    corpus = open_corpus(check_table(table).recipe.data, seed=0)
    text = corpus.tokenizer.decode(corpus.split("validation").tokens[1:60])
    assert text.startswith("user: ")
    held = Seen(corpus.split("train"), corpus.tokenizer)
    assert len(choose(corpus.split("validation"), held, 1000, refuse=True).tokens) == 1001
    both = Seen(corpus.split("validation"), corpus.tokenizer)
    with pytest.raises(DataError, match="the training text has the same 13 words in a row: 'user: "):
        choose(corpus.split("validation"), both, 1000, refuse=True)
