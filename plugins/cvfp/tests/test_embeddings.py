"""Token embeddings from elsewhere: the right tensor, and a sentence for every other file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from muse_cvfp.model import Cvfp
from safetensors.torch import save_file

from muse_core.errors import DataError, RecipeError
from muse_core.recipe import check_table, read_recipe
from muse_core.testing.building import build_component
from muse_core.training.setup import set_up

ROOT = Path(__file__).parents[3]


def filled(shape: tuple[int, int], **options):
    initializer = build_component("initializer", "safetensors", options)
    return initializer(torch.zeros(shape), role="embedding", generator=torch.Generator())


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A file with GPT-2's names, small, in half precision."""
    tensors = {
        "wte.weight": torch.arange(48.0).reshape(12, 4).half(),
        "wpe.weight": torch.ones(12, 4).half(),
        "h.0.attn.c_attn.weight": torch.ones(4, 12).half(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_the_embeddings_of_a_family_are_found_by_name(gpt2: Path) -> None:
    expected = torch.arange(48.0).reshape(12, 4)
    for source in (gpt2, gpt2 / "model.safetensors"):
        value = filled((12, 4), source=str(source))
        assert torch.equal(value, expected) and value.dtype == torch.float32
    assert torch.equal(filled((12, 4), source=str(gpt2), tensor="wpe.weight"), torch.ones(12, 4))


def test_another_width_is_a_sentence(gpt2: Path) -> None:
    with pytest.raises(RecipeError, match=r"wte.weight of .* has shape \[12, 4\], and the parameter \[12, 8\]"):
        filled((12, 8), source=str(gpt2))
    with pytest.raises(RecipeError, match=r"has no tensor 'wte'; it holds .*wte.weight \[12, 4\]"):
        filled((12, 4), source=str(gpt2), tensor="wte")


def test_names_that_do_not_decide_are_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.ones(3, 2), "b": torch.zeros(3, 2), "c": torch.full((2, 3), 2.0)}, path)
    with pytest.raises(RecipeError, match=r"2 tensors of .* have the shape \[3, 2\] - say which with tensor"):
        filled((3, 2), source=str(path))
    assert torch.equal(filled((2, 3), source=str(path)), torch.full((2, 3), 2.0))


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 40, b"not a file of tensors, but long enough"])
def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken.safetensors: cannot be read as safetensors .* - name a"):
        filled((3, 2), source=str(path))


def test_the_recipe_of_the_notes_has_their_size() -> None:
    recipe = read_recipe(ROOT / "recipes" / "cvfp_768.toml", ()).recipe
    stage = next(use.options for use in recipe.stages if use.name == "fixed-point")
    options = recipe.model.options
    assert (options.width, options.depth, stage.tokens, stage.validation_tokens) == (768, 6, 6400, 1280)


def test_orthogonal_embeddings_are_a_line_of_the_recipe(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {number} has some words of its own." for number in range(40)))
    table = {
        "name": "x",
        "data": {"use": "files", "paths": [str(text)], "documents": "paragraph", "cache": str(tmp_path / "cache")},
        "model": {"use": "cvfp", "width": 32, "depth": 1},
        "initializers": [{"use": "orthogonal", "match": "embedding.weight"}],
        "stages": ["fixed-point", "context-fixed"],
    }
    checked = check_table(table)
    model = set_up(checked.recipe, checked.registry).model
    assert isinstance(model, Cvfp)
    gram = model.embedding.weight.T @ model.embedding.weight
    assert (gram / gram[0, 0] - torch.eye(32)).abs().max() < 1e-4
