"""Runs compressed by the command, in processes of their own, and through the stages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from muse_koopman.distil import Distil
from muse_koopman.maps import CompressedEmbedding, CompressedLinear
from muse_koopman.options import DistilOptions
from muse_koopman.storage import Int8
from safetensors.torch import load_file

import muse_core
from muse_core.cli.compress import compress
from muse_core.cli.diagnose import diagnose
from muse_core.cli.report import show
from muse_core.errors import MuseError, RecipeError, StorageError
from muse_core.metrics.jsonl import read_rows
from muse_core.testing import warm
from muse_core.training.compression import Compression, compress_run, recipe_of, weight_bytes

MUSE = [sys.executable, "-c", "from muse_core.cli import muse; muse()"]


def muse(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MUSE_REPORT": "0", "OMP_NUM_THREADS": "1"}
    return warm.run([*MUSE, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=120)


def few_tokens(*stages: int) -> list[str]:
    """Stages that fit their maps on fewer tokens than the command's."""
    return [f"stages[{stage}].tokens=2048" for stage in stages]


def tables(run: Path, stage: int = 0) -> dict[str, Any]:
    return json.loads((run / f"evaluation-{stage}.json").read_text())


def assert_draws_and_is_measured(run: Any) -> None:
    """Text, recorded steps among it, and the suites of ``muse eval`` on the run's own held-out text."""
    assert len(run.generate("The ", tokens=40, temperature=0)) >= 20
    (row,) = run.evaluate("held-out", tokens=512)
    assert 1 < row["perplexity"] < 257
    assert run.evaluate("length", tokens=512)


@pytest.fixture(scope="module")
def factored(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the command, at a ratio of 2 with distillation."""
    folder = tmp_path_factory.mktemp("compressed") / "half"
    asked = ("--method", "koopman", "--ratio", 1.7, "--steps", 25, "--set", *few_tokens(0))
    done = muse("compress", small, *asked, "--output", folder)
    assert done.returncode == 0, done.stderr
    assert "times smaller; held-out perplexity" in done.stdout.replace("\n", " ")
    return folder


def test_the_file_is_smaller_and_the_table_says_what_became_of_each_map(small: Path, factored: Path) -> None:
    before, after = (weight_bytes(run) for run in (small, factored))
    assert after < before / 1.6
    state = muse_core.load(small).model.state_dict()
    assert before == sum(tensor.nbytes for tensor in state.values()), "no byte of the file's header counts"
    found = tables(factored)
    (whole,) = found["compression"]
    assert before == whole["bytes_uncompressed"] and after == whole["bytes"]
    assert whole["ratio"] >= 1.7 and whole["epsilon"] > 0
    maps = {row["map"]: row for row in found["maps"]}
    assert maps["blocks.0.resolvent.value"]["modes"] == "Schur form"
    assert maps["blocks.0.feed-forward.input"]["modes"] == "whitened singular values"
    smaller = [row for row in maps.values() if row["bytes_after"] < row["bytes_before"]]
    assert smaller and all(0 < row["error"] < 1 and row["became"].startswith("rank ") for row in smaller)
    model = muse_core.load(factored).model
    assert all(isinstance(model.get_submodule(row["map"]), CompressedLinear) for row in smaller)


def test_a_compressed_run_opens_as_any_other(factored: Path) -> None:
    told = muse("generate", factored, "--prompt", "The ", "--tokens", 12, "--temperature", 0)
    assert told.returncode == 0 and told.stdout.startswith("The ") and "differs" not in told.stderr
    assert muse_core.load(factored).evaluate("length", tokens=512)
    for command, options in ((show, []), (diagnose, ["--tokens", "256"])):
        done = CliRunner().invoke(command, [str(factored), *options])
        assert done.exit_code == 0, done.output


def test_reloaded_weights_give_the_same_scores(factored: Path) -> None:
    first, second = (muse_core.load(factored).logits("The state of the Union") for _ in range(2))
    assert torch.equal(first, second) and torch.isfinite(first).all()


def test_distillation_lowers_the_loss(factored: Path) -> None:
    rows = [row for row in read_rows(factored / "metrics.jsonl") if row.get("event") == "train"]
    assert rows[-1]["loss"] < 0.97 * rows[0]["loss"]
    assert tables(factored, 1)["distillation"][0]["spectral_drift"] >= 0


def test_integers_are_stored_and_served(small: Path, tmp_path: Path) -> None:
    teacher = muse_core.load(small)
    due = teacher.logits("The state of the Union")
    sizes, errors = {}, {}
    for method in ("int8", "int4"):
        folder, sentence = compress_run(small, Compression(method=method), tmp_path / method, few_tokens(0))
        found = muse_core.load(folder)
        assert "times smaller" in sentence
        assert repr(found).split()[1] == repr(teacher).split()[1], "integers are weights too"
        assert found.summary["parameters"] == teacher.summary["parameters"]
        assert isinstance(found.model.embedding, CompressedEmbedding) and isinstance(found.model.embedding.table, Int8)
        assert_draws_and_is_measured(found)
        errors[method] = float((found.logits("The state of the Union") - due).norm() / due.norm())
        sizes[method] = weight_bytes(folder)
    assert errors["int8"] < 0.02 and errors["int8"] < errors["int4"] < 0.3
    whole = weight_bytes(small)
    assert sizes["int4"] < sizes["int8"] < whole / 2.5


def test_a_ratio_in_rounds_then_integers_counts_for_the_file(small: Path, tmp_path: Path) -> None:
    asked = Compression(method="whitened", ratio=4.5, then="int8", steps=3, rounds=2)
    folder, _ = compress_run(small, asked, tmp_path / "out", few_tokens(0, 2, 4))
    stages = sorted(path.name for path in (folder / "stages").iterdir())
    due = ["koopman-compress", "koopman-distil"] * 2 + ["koopman-compress"]
    assert [name.partition("-")[2] for name in stages] == due
    first, second, last = (tables(folder, number)["compression"][0] for number in (0, 2, 4))
    assert first["epsilon"] < second["epsilon"] and last["ratio"] >= 4.5
    assert_draws_and_is_measured(muse_core.load(folder))


def test_pruning_keeps_entries_and_a_bit_for_each_place(small: Path, tmp_path: Path) -> None:
    asked = Compression(method="magnitude", ratio=1.7, steps=2)
    folder, _ = compress_run(small, asked, tmp_path / "out", few_tokens(0))
    whole = muse_core.load(small).model.get_submodule("blocks.0.feed-forward.output").weight
    kept = muse_core.load(folder).model.get_submodule("blocks.0.feed-forward.output").weight
    share = float((kept != 0).float().mean())
    assert 0.3 < share < 0.6 and share == pytest.approx(tables(folder)["compression"][0]["share_kept"], abs=0.01)
    assert whole[kept == 0].abs().max() <= whole.abs().median() * 1.5


WRONG = [
    ({"ratio": 500.0}, "out of reach"),
    ({"ratio": 9.0, "method": "int8"}, "at most"),
    ({"ratio": 0.5}, "ratio"),
    ({"method": "svdd"}, "did you mean 'svd'"),
    ({"method": "int8", "then": "int4"}, "goes with a method that makes factors"),
    ({"then": "int5"}, "int4"),
]


@pytest.mark.parametrize(("asked", "words"), WRONG)
def test_what_cannot_be_done_is_a_sentence_and_nothing_is_written(
    small: Path, tmp_path: Path, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        compress_run(small, Compression(**asked), tmp_path / "out")
    assert words in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_unfinished_and_damaged_runs_are_refused(small: Path, tmp_path: Path) -> None:
    def refused(run: Path) -> str:
        with pytest.raises(MuseError) as raised:
            compress_run(run, Compression(), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert isinstance(raised.value, StorageError) and raised.value.exit_code == 3
        return str(raised.value)

    assert "holds no run" in refused(tmp_path / "nothing")
    unfinished = shutil.copytree(small, tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    assert "has not finished" in refused(unfinished)
    damaged = shutil.copytree(small, tmp_path / "damaged")
    for file in damaged.glob("checkpoints/gen-*/model.safetensors"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    assert "damaged" in refused(damaged)


def test_a_model_of_another_kind_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    table = {
        "name": "other", "data": {"use": "state-of-the-union"}, "model": {"use": "gru", "width": 16},
        "train": {"steps": 1, "sequence_length": 32}, "stages": [{"use": "koopman-compress"}],
    }
    with pytest.raises(RecipeError, match="only stack"):
        muse_core.train(table, run_dir=tmp_path / "out", quiet=True)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_refuses(small: Path, tmp_path: Path) -> None:
    told = muse("compress", small, "--ratio", 500, "--output", tmp_path / "out")
    assert told.returncode == 2 and told.stderr.count("\n") == 1 and "out of reach" in told.stderr
    assert not list(tmp_path.iterdir())


def test_one_process_compresses_what_several_have_trained(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = shutil.copytree(small, tmp_path / "several")
    recipe = several / "recipe.toml"
    said = recipe.read_text()
    recipe.write_text(said.replace('data = "auto"\nshard = 1', "data = 2\nshard = 1"))
    assert recipe.read_text() != said
    recipe.write_text(recipe.read_text().replace("cuda_graph = false", "cuda_graph = true"))
    found = recipe_of(several, Compression()).recipe
    assert found.parallel.data == "auto" and not found.train.cuda_graph and "cuda_graph = true" in recipe.read_text()
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = CliRunner().invoke(compress, [str(small), "--output", str(tmp_path / "out")])
    assert told.exit_code == 2 and "this command is one process" in told.output


SEVERAL = """
name = "several"
data = { use = "state-of-the-union", tokenizer = "bytes" }
model = { width = 48, depth = 1, block = [{ use = "fast-weights", heads = 2 }, { use = "feed-forward" }] }
train = { steps = 2, batch_size = 2, sequence_length = 32, precision = "fp32", device = "cpu" }
evaluate = { every = 100, tokens = 64, final_tokens = 64 }
parallel = { data = 1, shard = "auto" }
stages = [
    { use = "train" }, { use = "koopman-compress", method = "svd", ratio = 1.5, tokens = 64 },
    { use = "train" }, { use = "koopman-compress", method = "int8", tokens = 64 },
]
"""


PAIR = """
import json, sys
from pathlib import Path
from muse_core.selftest.reliability.processes import Start, prepared, run_start
recipe, folder = map(Path, sys.argv[1:])
prepared(folder, recipe)
print(json.dumps(run_start(Start(arguments=(str(recipe), "--run-dir", str(folder / "run"), "--no-report")), folder)))
"""
"""Two processes of a run, forked from one."""


def test_distillation_needs_whole_weights(small: Path) -> None:
    ranks = SimpleNamespace(shards=2)
    stage = Distil(DistilOptions(teacher=str(small)), SimpleNamespace(ranks=ranks))
    assert "set parallel.shard = 1" in str(stage.refuse())
    ranks.shards = 1
    assert stage.refuse() is None


def test_weights_that_ranks_have_parts_of_are_compressed_whole(tmp_path: Path) -> None:
    recipe = tmp_path / "several.toml"
    recipe.write_text(SEVERAL)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PAIR, str(recipe), str(tmp_path)]
    done = warm.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["codes"] == [0, 0], done.stdout
    factors, integers = (tables(tmp_path / "run", stage)["compression"][0] for stage in (1, 3))
    assert factors["ratio"] >= 1.5 and integers["ratio"] > 4
    assert all(row["error"] < 0.05 for row in tables(tmp_path / "run", 3)["maps"] if "error" in row)
    stages = sorted((tmp_path / "run" / "stages").iterdir())
    newest = sorted((stages[0] / "checkpoints").glob("gen-*"))[-1]  # of a stage whose weights two ranks have written
    files = [newest / "model.safetensors", newest / "model-00001.safetensors"]
    tensors = [tensor for file in files for tensor in load_file(file).values()]
    assert weight_bytes(stages[0]) == sum(tensor.nbytes for tensor in tensors)


def test_the_new_recipe_can_be_read_and_holds_no_first_values(factored: Path) -> None:
    (newest,) = (factored / "stages").glob("1-*")
    checked = muse_core.recipe.read_recipe(newest / "recipe.toml")
    assert checked.recipe.model.name == "compressed" and not checked.recipe.initializers
    assert checked.recipe.init.from_ is None and len(checked.recipe.model.options.map) > 3
    assert recipe_of(factored, Compression(method="int8")).recipe.name.endswith("koopman-int8")
