"""MUSE from Python: what load, build and train give, and what they say to wrong input."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

import muse_core
from muse_core.errors import DataError, RecipeError, StorageError

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = "The state of the union is strong — and the union of states is a strong state."


@pytest.fixture(scope="module")
def run(finished_run: Path) -> Any:
    return muse_core.load(finished_run)


def test_a_run_opens_as_model_and_tokenizer(finished_run: Path, run: Any) -> None:
    model, tokenizer = muse_core.load(str(finished_run))
    assert not model.training and tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert run.step == 10 and run.path == finished_run and "at step 10" in repr(run)
    assert repr(tokenizer) == "<ByteTokenizer: 257 tokens, separator 256>"
    assert "<th>steps</th><td>10 of 10</td>" in run._repr_html_()
    said = repr(model(torch.tensor([[1, 2, 3]])))
    assert said.startswith("<ModelOutput: hidden (1, 3, 32) torch.float32, ") and len(said) < 100
    assert muse_core.load(finished_run, step=0).step == 0


def test_opening_and_building_change_nothing_of_the_process(finished_run: Path, small_recipe: dict[str, Any]) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    muse_core.load(finished_run).generate(TEXT, tokens=2)
    muse_core.build(small_recipe | {"deterministic": True})
    assert torch.equal(torch.get_rng_state(), before), "the seed of a program that only reads was changed"
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_score_is_the_cross_entropy_of_every_token_given_all_before_it(run: Any) -> None:
    found = run.score(TEXT)
    ids = [run.tokenizer.separator, *map(int, run.tokenizer.encode(TEXT))]
    scores = run.logits(ids[:-1]).log_softmax(-1)
    nats = -scores[torch.arange(len(ids) - 1), ids[1:]].double().sum().item()
    assert found["bytes"] == len(TEXT.encode()) == found["tokens"]
    assert found["nats"] == pytest.approx(nats, rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(TEXT.encode()), rel=1e-6)
    assert found["nats_per_token"] == pytest.approx(nats / len(TEXT.encode()), rel=1e-6)


def test_a_score_does_not_depend_on_the_segments_that_are_read(run: Any) -> None:
    from muse_core.evaluation import scoring

    ids = torch.from_numpy(run.tokenizer.encode(TEXT).astype("int64"))[None]
    whole = scoring.Reader(run.setup, segment=512).losses(ids)[0]
    pieces = scoring.Reader(run.setup, segment=7).losses(ids)[0]
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-4)


def test_text_is_drawn_and_the_most_likely_token_is_that_of_the_logits(run: Any) -> None:
    said = run.generate(TEXT, tokens=1, temperature=0)
    assert said == run.tokenizer.decode([int(run.logits(TEXT)[-1].argmax())])
    assert run.generate(TEXT, tokens=5, seed=1) == run.generate(TEXT, tokens=5, seed=1)
    assert run.generate(TEXT, tokens=5, temperature=5.0, top_k=1) == run.generate(TEXT, tokens=5, temperature=0)


def test_an_empty_prompt_starts_a_document_as_on_the_command_line(run: Any) -> None:
    assert run.generate("", tokens=12) == run.generate([run.tokenizer.separator], tokens=12)


def test_hidden_states_are_the_stream_that_layers_add_to_and_the_head_reads(run: Any) -> None:
    text = TEXT * 20  # more than one segment
    states = run.hidden_states(text)
    depth = len(run.model.blocks)
    assert list(states) == ["embedding", *(f"blocks.{at}" for at in range(depth)), "hidden"]
    ids = torch.from_numpy(run.tokenizer.encode(text).astype("int64"))
    assert all(state.shape[0] == len(ids) > 512 and state.dtype == torch.float32 for state in states.values())
    with torch.no_grad(), run.setup.precision():
        scores = run.model.logits(states["hidden"]).float()
        assert torch.equal(states["embedding"], run.model.embed(ids))
    torch.testing.assert_close(scores, run.logits(text))
    layers = [f"blocks.0.{site.name}" for site in run.model.blocks[0].sites]
    added = run.hidden_states(list(ids), layers)
    torch.testing.assert_close(sum(added.values(), states["embedding"]), states["blocks.0"])
    assert not any(module._forward_hooks for module in run.model.modules())


def test_records_and_rows_are_tables_for_pandas(run: Any) -> None:
    frame = pandas.DataFrame(run.records())
    assert frame.step.tolist() == [1, 2, 4, 6, 8, 10] and frame.loss.dtype == float
    frame = pandas.DataFrame(run.evaluate(["held-out"], tokens=1280))
    assert frame.bits_per_byte[0] == pytest.approx(run.summary["held_out_bits_per_byte"], rel=1e-6)
    assert frame.suite.tolist() == ["held-out"] and frame.step.tolist() == [10]
    with pytest.raises(TypeError, match=r"texts=\[text\]"):
        run.evaluate("held-out", texts="one text, and no list of its characters")


def test_a_recipe_is_built_for_a_loop_of_ones_own(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    built = muse_core.build(small_recipe, {"train.batch_size": 2, "name": "other"})
    assert built.setup.recipe.name == "other" and small_recipe["train"]["batch_size"] == 4
    model, _ = built
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = built.loss(built.batch(0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert built.batch(0).inputs.shape == (2, 64) and losses[-1] < losses[0] and losses[0] < 8.0
    with pytest.raises(StorageError, match="no run directory"):
        built.records()


@pytest.mark.parametrize(
    "value",
    ["zwölf 🦊 \"'\\", 1.5, 3, True, ["a", 1e-9], {"use": "x", "y.z": [1]}, np.float64(1e-3), np.int64(3)],
)
def test_overrides_are_written_as_toml(value: Any) -> None:
    from muse_core.api import _written

    assert tomllib.loads(f"x = {_written(value)}")["x"] == value


def test_training_as_one_of_several_processes_is_refused(
    small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="WORLD_SIZE = 2: muse_core.train is one process"):
        muse_core.train(small_recipe)


def test_a_recipe_is_trained_from_its_file(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    from muse_core.recipe import to_toml

    file = tmp_path / "small.toml"
    file.write_text(to_toml(small_recipe), encoding="utf-8")
    done = muse_core.train(str(file), ["train.steps=2"], run_dir=str(tmp_path / "run"), quiet=True)
    assert done.step == 2 and done.summary["steps"] == 2 and done.path == tmp_path / "run"
    further = muse_core.resume(done.path, extend=2, quiet=True)
    assert further.step == 4 and [row["step"] for row in further.records()][-1] == 4
    assert not (done.path / "report.html").exists()
    pytest.importorskip("vl_convert", reason="drawing needs vl-convert-python")
    assert further.report() == done.path / "report.html" and further.report().is_file()


@pytest.mark.parametrize(
    "ask, error, words",
    [
        (lambda run: muse_core.load("/nowhere"), StorageError, "holds no run"),
        (lambda run: muse_core.load(run.path, step=3), StorageError, "has no checkpoint of step 3"),
        (lambda run: muse_core.build("/nowhere.toml"), RecipeError, "nowhere.toml"),
        (lambda run: muse_core.build({"name": "x"}, "train.steps=1"), RecipeError, "must be a list or a table"),
        (lambda run: run.hidden_states(TEXT, "blocks.0.atention"), RecipeError, "did you mean 'blocks.0.attention'"),
        (lambda run: run.hidden_states(TEXT, "blocks"), RecipeError, "blocks was not called once with every token"),
        (lambda run: run.hidden_states(TEXT, "blocks.0.fast-weights.filters.snr"), RecipeError, "no value for each"),
        (lambda run: run.hidden_states(TEXT, []), RecipeError, "no module is named - name some, or leave modules out"),
        (lambda run: run.hidden_states(""), DataError, "empty"),
        (lambda run: run.records("trian"), ValueError, "one of schema, train, .* not 'trian'"),
        (lambda run: muse_core.resume(run.path, steps=20, extend=1), RecipeError, "not both"),
        (lambda run: muse_core.resume(run.path, extend=0), RecipeError, "extend: must be at least 1, not 0"),
        (lambda run: muse_core.resume("/nowhere"), StorageError, "/nowhere"),
        (lambda run: run.score(""), DataError, "empty"),
        (lambda run: run.score("\ud800"), DataError, "not Unicode"),
        (lambda run: run.logits([]), DataError, "empty"),
        (lambda run: run.logits([257]), DataError, "token 257 is not one of the model's, 0 to 256"),
        (lambda run: run.logits([1.5]), TypeError, r"a token id is a whole number, and 1.5 \(float\) is in the list"),
        (lambda run: run.logits([[1, 2], [3]]), TypeError, r"and \[1, 2\] \(list\) is in .* give one text at a time"),
        (lambda run: run.logits(torch.ones(2, 3).long()), TypeError, "is in the list - give one text at a time"),
        (lambda run: run.logits(torch.ones(3)), TypeError, "a token id is a whole number"),
        (lambda run: run.logits(torch.tensor(3)), TypeError, r"a str or a list of token ids, not tensor\(3\)"),
        (lambda run: run.logits(["a", "b"]), TypeError, r"'a' \(str\) is in the list - give one text at a time"),
        (lambda run: run.hidden_states(3), TypeError, r"a text is a str or a list of token ids, not 3 \(int\)"),
        (lambda run: run.hidden_states(TEXT, 3), TypeError, r"modules must be a list of str, not 3 \(int\)"),
        (lambda run: run.hidden_states(TEXT, [3]), TypeError, r"modules must be a list of str; 3 \(int\) is in it"),
        (lambda run: run.generate(5), TypeError, r"a text is a str or a list of token ids, not 5 \(int\)"),
        (lambda run: run.generate(None), TypeError, "a text is a str or a list of token ids, not None"),
        (lambda run: run.generate("a", temperature="hot"), TypeError, r"temperature must be a number, not 'hot'"),
        (lambda run: run.generate("a", top_p=None), TypeError, "top_p must be a number, not None"),
        (lambda run: run.generate("a", top_k=1.5), TypeError, "top_k must be a whole number, not 1.5"),
        (lambda run: run.generate("a", seed="x"), TypeError, "seed must be a whole number, not 'x'"),
        (lambda run: run.evaluate(3), TypeError, r"suites must be a list of str, not 3 \(int\)"),
        (lambda run: run.evaluate([3]), TypeError, r"suites must be a list of str; 3 \(int\) is in it"),
        (lambda run: run.evaluate("held-out", texts=3), TypeError, "texts must be a list of str, not 3"),
        (lambda run: run.evaluate("held-out", texts=[3]), TypeError, "texts must be a list of str; 3"),
        (lambda run: run.batch("first"), TypeError, "step must be a whole number, not 'first'"),
        (lambda run: run.loss(3), TypeError, r"a loss is of a Batch, such as run.batch\(0\), not of 3"),
        (lambda run: run.records([]), ValueError, "one of schema"),
        (lambda run: muse_core.load(3), TypeError, r"run must be a path, not 3 \(int\)"),
        (lambda run: muse_core.load(run.path, step="3"), TypeError, "step must be a whole number, not '3'"),
        (lambda run: muse_core.load(run.path, device=3), RecipeError, "'3' - auto, cpu, cuda or cuda:<index>"),
        (lambda run: muse_core.build(3), TypeError, "recipe must be a path, not 3"),
        (lambda run: muse_core.build({"name": "x"}, 3), TypeError, "overrides must be a list of str, not 3"),
        (lambda run: muse_core.build({"name": "x"}, [3]), TypeError, "overrides must be a list of str; 3"),
        (lambda run: muse_core.build({"name": "x"}, {"seed": object}), TypeError, "overrides: .* has no form in a rec"),
        (lambda run: muse_core.build({"name": "x"}, {"seed": None}), TypeError, "overrides: None .* has no form in a"),
        (lambda run: muse_core.compare(3, run.path), TypeError, r"a run must be a path, not 3 \(int\)"),
        (lambda run: muse_core.runs([run.path]), TypeError, "a folder must be a path, not"),
        (lambda run: muse_core.resume(3), TypeError, "run must be a path, not 3"),
        (lambda run: muse_core.resume(run.path, steps="9"), TypeError, "steps must be a whole number, not '9'"),
        (lambda run: run.logits(b"ab"), TypeError, "bytes may mean a text or token ids"),
        (lambda run: run.score([1, 2]), TypeError, "a str, and this is list"),
        (lambda run: run.generate("a", tokens=0), ValueError, "at least 1"),
        (lambda run: run.generate("a", tokens=2.5), TypeError, r"tokens must be a whole number, not 2.5 \(float\)"),
        (lambda run: run.generate("a", top_k=0), ValueError, "top_k 0 ≥ 1"),
        (lambda run: run.batch(-1), ValueError, "step must be at least 0, not -1"),
        (lambda run: run.batch(2**62), ValueError, "step must be at most 1099511627776, not 4611686018427387904"),
        (lambda run: run.generate("a", seed=-1), ValueError, "seed must be at least 0, not -1"),
        (lambda run: run.generate("a", seed=2**64), ValueError, "seed must be at most 9223372036854775807, not 18"),
        (lambda run: run.evaluate("held-out", tokens=1), ValueError, "tokens must be at least 2, not 1"),
        (lambda run: run.evaluate("needles", samples=0), ValueError, "samples must be at least 1, not 0"),
        (lambda run: run.generate("a", temperature=math.nan), ValueError, "temperature nan must be finite"),
        (lambda run: run.generate("a", temperature=math.inf), ValueError, "temperature inf must be finite"),
        (lambda run: run.evaluate("hold-out"), RecipeError, "did you mean 'held-out'"),
        (lambda run: run.evaluate("held-out", texts=[" "]), DataError, "empty"),
    ],
)
def test_wrong_input_gets_one_sentence(run: Any, ask: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        ask(run)
    assert "\n" not in str(raised.value)


def test_a_run_s_directory_is_a_path(small_recipe: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"run_dir must be a path, not 3 \(int\)"):
        muse_core.train(small_recipe, run_dir=3)


def test_an_unfinished_run_has_no_summary_and_one_without_a_loss_has_a_float(run: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(run.path, tmp_path / "run")
    (copy / "summary.json").write_text('{"held_out_loss": "nan", "name": "infinite"}')
    found = muse_core.load(copy).summary
    assert math.isnan(found["held_out_loss"]) and found["name"] == "infinite"
    (copy / "summary.json").unlink()
    with pytest.raises(StorageError, match="has not finished"):
        _ = muse_core.load(copy).summary


def test_the_module_is_the_command_and_says_where_training_is() -> None:
    def muse(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "muse_core", *arguments], capture_output=True, text=True, timeout=120
        )

    assert "generate" in muse("--help").stdout
    for name in ("run", "train"):
        asked = muse(name, "recipe.toml")
        assert asked.returncode == 2 and "muse-run RECIPE" in asked.stderr
