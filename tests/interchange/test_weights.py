"""Weights by a table of names: exported ones come back equal, renamed, transposed, cut; what does not fit is listed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from muse_core.cli import muse
from muse_core.cli.run import main as muse_run
from muse_core.training.trained import open_trained


def called(*arguments: Any) -> Result:
    return CliRunner().invoke(muse, [*map(str, arguments)])


@pytest.fixture
def given(trained: Any, tmp_path: Path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """A run's recipe, the run, and its weights."""
    run = trained("attention")
    setup, _ = open_trained(run)
    weights = {name: value.detach().clone() for name, value in setup.model.state_dict().items()}
    return run / "recipe.toml", run, weights


def other_names(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """The weights as another program may store them: numbered layers, (inputs, outputs) matrices, fused projections."""
    theirs: dict[str, torch.Tensor] = {}
    rows: dict[str, str] = {}
    fused: dict[str, list[tuple[str, torch.Tensor]]] = {}
    for name, value in weights.items():
        block = name.split(".")[1] if name.startswith("blocks.") else ""
        pattern = name.replace(f"blocks.{block}.", "blocks.{}.") if block else name
        if pattern.endswith((".query.weight", ".key.weight", ".value.weight")):
            fused.setdefault(block, []).append((pattern, value))
        elif pattern.endswith("attention.output.weight"):
            rows[pattern] = '{ name = "h.{}.c_proj", transpose = true }'
            theirs[f"h.{block}.c_proj"] = value.T.contiguous()
        else:
            rows[pattern] = f'"their.{pattern}"'
            theirs[f"their.{name}"] = value
    for block, parts in fused.items():
        theirs[f"h.{block}.qkv"] = torch.cat([value for _, value in parts])
        for index, (pattern, _) in enumerate(parts):
            rows[pattern] = f'{{ name = "h.{{}}.qkv", part = [{index}, {len(parts)}] }}'
    return theirs, "".join(f'"{ours}" = {value}\n' for ours, value in rows.items())


def test_weights_of_other_names_are_the_same_model(given: Any, tmp_path: Path) -> None:
    recipe, run, weights = given
    theirs, names = other_names(weights)
    save_file(theirs | {"rotary.cache": torch.zeros(3)}, tmp_path / "theirs.safetensors")
    (tmp_path / "names.toml").write_text(names)
    more = ("--names", tmp_path / "names.toml")
    done = called("import", recipe, tmp_path / "theirs.safetensors", tmp_path / "run", *more)
    assert done.exit_code == 0, done.output
    assert "rotary.cache" in done.output and f"{len(weights)} of {len(weights)} weights" in done.output
    setup, _ = open_trained(tmp_path / "run", untrained=False)
    assert all(torch.equal(weights[name], value) for name, value in setup.model.state_dict().items())
    spoken = called("generate", tmp_path / "run", "--prompt", "The", "--tokens", 3, "--temperature", 0)
    assert spoken.exit_code == 0 and spoken.output == called(
        "generate", run, "--prompt", "The", "--tokens", 3, "--temperature", 0).output


def test_an_exported_run_comes_back(given: Any, tmp_path: Path) -> None:
    recipe, run, weights = given
    assert called("export", run, tmp_path / "hf").exit_code == 0
    (tmp_path / "names.toml").write_text("".join(f'"{name}" = "model.{name}"\n' for name in weights))
    named = called("import", recipe, tmp_path / "hf", tmp_path / "named", "--names", tmp_path / "names.toml")
    done = called("import", recipe, tmp_path / "hf", tmp_path / "run")
    assert (done.exit_code, done.output) == (0, named.output.replace("named", "run")), done.output
    again = called("export", tmp_path / "run", tmp_path / "again")
    assert again.exit_code == 0, again.output
    first, second = (load_file(folder / "model.safetensors") for folder in (tmp_path / "hf", tmp_path / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_an_imported_run_is_finished_by_resuming_it(given: Any, tmp_path: Path) -> None:
    """Recipe and lock of an import agree with what ``muse-run --resume`` reads, so that it is a run like any other."""
    recipe, run, weights = given
    save_file(weights, tmp_path / "theirs.safetensors")
    imported = tmp_path / "imported"
    done = called("import", recipe, tmp_path / "theirs.safetensors", imported)
    assert done.exit_code == 0, done.output
    longer = CliRunner().invoke(muse_run, ["--resume", str(imported), "--extend", "2"])
    assert longer.exit_code == 2 and "cannot be made longer" in longer.output, longer.output
    resumed = CliRunner().invoke(muse_run, ["--resume", str(imported), "--no-report"])
    assert resumed.exit_code == 0, resumed.output
    figures = (json.loads((one / "summary.json").read_text())["held_out_bits_per_byte"] for one in (run, imported))
    assert len(set(figures)) == 1, "the same weights on the same text"


def test_everything_that_does_not_fit_is_listed_and_nothing_is_left(given: Any, tmp_path: Path) -> None:
    recipe, _, weights = given
    short = {name: value for name, value in weights.items() if "output" not in name}
    short["embedding.weight"] = torch.zeros(3, 5)
    save_file(short, tmp_path / "short.safetensors")
    (tmp_path / "names.toml").write_text('"blocks.{}.nothing" = "h.{}.nothing"\n')
    more = ("--names", tmp_path / "names.toml")
    done = called("import", recipe, tmp_path / "short.safetensors", tmp_path / "run", *more)
    assert done.exit_code == 3, done.output
    assert "embedding.weight: 'embedding.weight' has shape (3, 5) where" in done.output
    assert "blocks.0.attention.output.weight" in done.output and "'blocks.{}.nothing' is no weight" in done.output
    assert not (tmp_path / "run").exists()
    del short["embedding.weight"]
    save_file(short, tmp_path / "short.safetensors")
    done = called("import", recipe, tmp_path / "short.safetensors", tmp_path / "run", "--partial")
    assert done.exit_code == 0 and f"{len(short)} of {len(weights)}" in done.output


@pytest.mark.parametrize(
    ("number", "dtype"), [(math.nan, torch.float32), (math.inf, torch.bfloat16), (1e300, torch.float64)]
)
def test_numbers_that_are_not_finite_in_the_model_are_refused(
    given: Any, tmp_path: Path, number: float, dtype: torch.dtype
) -> None:
    """They were written into a checkpoint that no command opens."""
    recipe, _, weights = given
    odd = weights["embedding.weight"].to(dtype)
    odd[0, :2] = number
    save_file(weights | {"embedding.weight": odd}, tmp_path / "odd.safetensors")
    done = called("import", recipe, tmp_path / "odd.safetensors", tmp_path / "run")
    assert done.exit_code == 3, done.output
    assert f"'embedding.weight' has 2 of {odd.numel():,} numbers that are not finite in torch.float32" in done.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ('"a" = 3', "must be their name"),
        ('"a" = { name = "b", shape = 3 }', "has no key 'shape'"),
        ('"a" = { name = "b", part = [3, 3] }', "part must be"),
        ('"a.{}" = "b"', "must stand equally often"),
        ('"a" = { name = "b", transpose = 1 }', "transpose must be"),
    ],
)
def test_a_wrong_table_of_names_is_told_by_line(given: Any, tmp_path: Path, names: str, sentence: str) -> None:
    (tmp_path / "names.toml").write_text(names + "\n")
    done = called("import", given[0], tmp_path / "none", tmp_path / "run", "--names", tmp_path / "names.toml")
    assert done.exit_code == 2 and sentence in done.output and "names.toml:1" in done.output


def test_files_that_hold_no_weights_are_said(given: Any, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors")
    for path in (tmp_path / "text.safetensors", tmp_path / "nowhere", tmp_path):
        done = called("import", given[0], path, tmp_path / "run")
        assert done.exit_code == 3 and "cannot be read as a safetensors file" in done.output, done.output
    assert not (tmp_path / "run").exists()
