"""What a suite finds is told in sentences, so every assertion of one says what is wrong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import muse_core.testing
from muse_core.cli.plugins import summary
from muse_core.kinds import KINDS, with_article

FILES = sorted(Path(muse_core.testing.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_assertion_of_a_suite_says_what_is_wrong(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert) and node.msg is None]
    assert not silent, f"{path.name}: assertions without words in lines {silent}"


def test_kinds_have_their_article() -> None:
    found = {with_article(kind) for kind in KINDS if kind[0] in "aeiou"}
    assert found == {"an optimizer", "an initializer"} and with_article("layer") == "a layer"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Sign of the momentum (Chen et al. 2023). It is scaled.", "Sign of the momentum (Chen et al. 2023)"),
        ("After Chen et al. Their rule.", "After Chen et al. Their rule"),
        ("Sizes as in fla, e.g. of heads. More.", "Sizes as in fla, e.g. of heads"),
        ("One.", "One"),
    ],
)
def test_a_listing_has_the_first_sentence_whole(text: str, first: str) -> None:
    assert summary(type("Options", (), {"__doc__": text})) == first
