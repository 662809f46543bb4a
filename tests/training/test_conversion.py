"""Weights of a Phase-1 model in a Phase-2 model: what fits is carried over, the rest is told, and the new parts start
so quietly that the perplexity stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from muse_core.building import construct
from muse_core.errors import RecipeError, StorageError
from muse_core.metrics.jsonl import read_rows
from muse_core.recipe import check_table, to_toml
from muse_core.storage.checkpoint.tensor_file import read_tensors, write_tensors
from muse_core.storage.disk import Disk
from muse_core.training.conversion import carry_over, renamed
from muse_core.training.trained import newest_of, open_trained

Table = Callable[..., dict[str, Any]]
Go = Callable[..., dict[str, Any]]

HERMITIAN = [{"use": "resolvent", "heads": 8, "potential": ["hermitian"]}, {"use": "feed-forward"}]
QUIET = {"use": "non-hermitian", "initial_decay": [0.0001, 0.001]}
RENAME = ["hermitian=non-hermitian"]


@pytest.fixture
def first(table: Table) -> dict[str, Any]:
    """A Phase-1 recipe, trained far enough that its mixer matters."""
    train = {"steps": 40, "learning_rate": 0.01, "batch_size": 4, "sequence_length": 48, "log_every": 20}
    return table(
        model={"block": HERMITIAN, "dropout": 0.0}, train=train,
        evaluate={"tokens": 2400, "final_tokens": 2400}, checkpoint={"every": 40},
    )


def phase_2(recipe: dict[str, Any], **tables: Any) -> dict[str, Any]:
    """The same with a dissipative potential and a memory, both quiet at the start."""
    block = [
        {"use": "resolvent", "heads": 8, "potential": [QUIET]},
        {"use": "fast-weights", "heads": 2, "period": 16, "filters": ["snr", "resonance"]},
        {"use": "feed-forward"},
    ]
    quiet = [{"use": "scaled", "factor": 0.0, "match": "blocks.*.fast-weights.output.weight"}]
    return recipe | {"model": recipe["model"] | {"block": block}, "initializers": quiet} | tables


def test_weights_go_where_name_and_shape_fit() -> None:
    model = nn.ModuleDict({"same": nn.Linear(2, 3, bias=False), "wider": nn.Linear(2, 4, bias=False)})
    model["new"] = nn.Linear(1, 1, bias=False)
    kept = model["wider"].weight.clone()
    given = {"same.weight": torch.ones(3, 2), "wider.weight": torch.ones(3, 2), "gone.weight": torch.ones(1)}
    found = carry_over(model, given)
    assert found.copied == ("same.weight",) and found.initialised == ("new.weight",) and found.left == ("gone.weight",)
    assert found.unfit == (("wider.weight", (3, 2), (4, 2)),)
    assert torch.equal(model["same"].weight, torch.ones(3, 2)) and torch.equal(model["wider"].weight, kept)
    assert found.rows()["did not fit (1)"] == "wider.weight: (3, 2) there, (4, 2) here"
    assert found.event()["unfit_names"] == ["wider.weight [3, 2] to [4, 2]"]
    with pytest.raises(StorageError, match="none of the 1 weights fits"):
        carry_over(model, {"gone.weight": torch.ones(1)})


def test_what_is_left_behind_is_told_in_the_order_of_the_file(tmp_path: Path) -> None:
    names = sorted(f"old.{number}.weight" for number in range(20))
    given = {name: torch.ones(1) for name in reversed(names)} | {"weight": torch.ones(1, 1)}
    write_tensors(Disk(), tmp_path / "model.safetensors", given)
    for _ in range(3):
        found = carry_over(nn.Linear(1, 1), read_tensors((tmp_path / "model.safetensors").read_bytes()))
        assert found.left == tuple(names)


def test_names_change_by_whole_components() -> None:
    weights = {"a.b.c": torch.ones(1), "a.bb.c": torch.zeros(1)}
    assert set(renamed(weights, ["b=x", "a.x=y"])) == {"y.c", "a.bb.c"}
    with pytest.raises(StorageError, match="no weight has 'd'"):
        renamed(weights, ["d=e"])
    with pytest.raises(StorageError, match="one name"):
        renamed(weights, ["b=bb"])


def test_a_wrong_pair_is_a_sentence(table: Table, registry: Any) -> None:
    with pytest.raises(RecipeError, match='"OLD=NEW"'):
        check_table(table(init={"from": "runs/a", "rename": ["hermitian"]}), registry)


def test_a_converted_model_starts_at_the_perplexity_of_its_first_phase(
    first: dict[str, Any], go: Go, tmp_path: Path
) -> None:
    """By the stage, and by [init]; with new parts that are not quiet it would not."""
    phase_1 = go(first, "one")["held_out_perplexity"]
    assert phase_1 < 22, "the first phase has learned"

    (tmp_path / "second.toml").write_text(to_toml(phase_2(first, train=first["train"] | {"steps": 2})))
    convert = {"use": "convert", "to": str(tmp_path / "second.toml"), "rename": RENAME}
    summary = go(first | {"init": {"from": str(tmp_path / "one")}, "stages": [convert, "train"]}, "staged")
    carried = summary["weights"]
    assert carried["perplexity_before"] == pytest.approx(phase_1)
    assert abs(carried["perplexity_after"] / phase_1 - 1) < 0.05
    assert carried["unfit"] == carried["left"] == 0 and carried["copied"] > 10 and carried["initialised"] > 10
    events = [row for row in read_rows(tmp_path / "staged" / "events.jsonl") if row["event"] == "weights"]
    assert [row["source"] for row in events] == [str(tmp_path / "one"), "stage 0"]
    assert events[0]["initialised"] == 0 and "blocks.0.fast-weights.output.weight" in events[1]["initialised_names"]
    setup, step = open_trained(tmp_path / "staged")
    assert step == 2 and "blocks.0.fast-weights.query.weight" in setup.model.state_dict()

    init = {"init": {"from": str(tmp_path / "one"), "rename": RENAME}, "stages": ["evaluate"]}
    quiet = go(phase_2(first, **init), "quiet")
    assert quiet["held_out_perplexity"] == pytest.approx(carried["perplexity_after"])
    loud = phase_2(first, **init)
    loud["initializers"][0]["factor"] = 20.0
    assert go(loud, "loud")["held_out_perplexity"] > 1.05 * phase_1


def test_embeddings_of_another_tokenizer_are_not_carried_over(
    table: Table, go: Go, prepare: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    """Of as many tokens: those of another size start afresh by themselves. The words of the second text are others."""
    here, there = "the ship sails by night ", "zebra quartz jungle vivid "
    for name, words in (("here", here), ("there", there)):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{words * 20}{number}" for number in range(60)))
    bpe = {"use": "bpe", "vocabulary": 300}

    def recipe(name: str) -> dict[str, Any]:
        paths = [str(tmp_path / f"{name}.txt")]
        return table(
            data={"use": "files", "paths": paths, "documents": "paragraph", "tokenizer": bpe}, train={"steps": 1}
        )

    (tmp_path / "second.toml").write_text(to_toml(recipe("there")))
    convert = {"use": "convert", "to": str(tmp_path / "second.toml")}
    setup = prepare(recipe("here") | {"stages": ["train", convert]})
    asked = construct(setup.recipe.stages[1], setup).refuse()
    assert asked is not None and "another tokenizer of 300 tokens" in asked
    same = recipe("here") | {"stages": [convert | {"to": str(tmp_path / "same.toml")}]}
    (tmp_path / "same.toml").write_text(to_toml(recipe("here")))
    assert construct(prepare(same).recipe.stages[0], prepare(same)).refuse() is None

    wrong = recipe("here") | {"stages": ["train", convert | {"fresh": ["norm.weight"]}]}
    with pytest.raises(RecipeError, match=r"stage convert: .*the embedding.weight of this run stand for other tokens"):
        go(wrong, "wrong")
    afresh = recipe("here") | {"stages": ["train", convert | {"fresh": ["embedding.*"]}]}
    found = go(afresh, "afresh")["weights"]
    assert found["initialised"] == 1 and found["left"] == 0


def test_a_directory_without_a_run_is_named_with_what_asked(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="init.from: .*holds no run"):
        newest_of(tmp_path, asked_by="init.from")
