"""Tiny runs that were really trained, by what their model is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from muse_core.cli.run import main

RECIPE = """\
name = "tiny"
seed = 5
[data]
{data}
tokenizer = {tokenizer}
[model]
width = 32
depth = 2
{model}
[train]
steps = 3
batch_size = 2
sequence_length = 32
warmup_steps = 1
device = "cpu"
precision = "{precision}"
[evaluate]
tokens = 64
final_tokens = 64
"""
BUNDLED = 'use = "state-of-the-union"'
SHORT = f'use = "files"\npaths = ["{Path(__file__).parents[2] / "docs" / "mathematics.md"}"]\ndocuments = "paragraph"'
"""Byte pairs of the bundled text take a quarter of a minute."""
MODELS = {
    "resolvent": '[[model.block]]\nuse = "resolvent"\n[[model.block]]\nuse = "fast-weights"\nfilters = []\n'
                 '[[model.block]]\nuse = "feed-forward"',
    "attention": '[[model.block]]\nuse = "attention"\nheads = 2\n[[model.block]]\nuse = "feed-forward"',
    "untied": 'tie_embeddings = false\n[[model.block]]\nuse = "mamba2"\n[[model.block]]\nuse = "feed-forward"',
}


@pytest.fixture(scope="session")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``trained(model, precision, tokenizer)``: the directory of such a run, made once."""
    made: dict[tuple[str, str, str], Path] = {}
    folder = tmp_path_factory.mktemp("runs")

    def make(model: str = "resolvent", precision: str = "fp32", tokenizer: str = '"bytes"') -> Path:
        key = (model, precision, tokenizer)
        if key not in made:
            recipe, run = folder / f"{len(made)}.toml", folder / f"run-{len(made)}"
            data = BUNDLED if tokenizer == '"bytes"' else SHORT
            text = RECIPE.format(data=data, model=MODELS[model], precision=precision, tokenizer=tokenizer)
            recipe.write_text(text)
            done = CliRunner().invoke(main, [str(recipe), "--run-dir", str(run)], env={"MUSE_CACHE": str(cache)})
            assert done.exit_code == 0, done.output
            made[key] = run
        return made[key]

    return make
