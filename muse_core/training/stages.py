"""Options of the core's stages. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from muse_core.component import RecipePath
from muse_core.evaluation.suites import SUITES
from muse_core.options.renames import RENAMES
from muse_core.plugins.near import suggestion


@attrs.frozen(kw_only=True)
class TrainOptions:
    """Next-token cross-entropy with the layers' own losses."""


def _is_suite(options: Any, attribute: Any, name: str) -> None:
    if name not in SUITES:
        raise ValueError(f"{name!r} is no suite{suggestion(name, SUITES, 'there are')}")


@attrs.frozen(kw_only=True)
class EvaluateOptions:
    """Held-out measures of the weights as they are; nothing is trained. With ``suites`` what ``muse eval`` measures
    stands in the run's evaluation-<number of the stage>.json."""

    suites: tuple[str, ...] = attrs.field(default=(), validator=attrs.validators.deep_iterable(_is_suite))
    """Names of suites, as ``["length", "needles"]``."""
    tokens: int = attrs.field(default=65_536, validator=attrs.validators.ge(2))
    """Tokens of held-out text to read at most, in each suite that does."""
    samples: int = attrs.field(default=4, validator=attrs.validators.ge(1))
    """Rows of text in each of the five depths of a needle map; mqar has eight times as many."""


@attrs.frozen(kw_only=True)
class ConvertOptions:
    """Goes on with another recipe, whose model takes over the weights that fit by name and shape."""

    to: RecipePath
    """Recipe file, relative to the recipe that names it. Its stages and ``init`` are not read: this run's go on."""
    rename: tuple[str, ...] = attrs.field(default=(), validator=RENAMES)
    """Parts of parameter names that change, as ``"OLD=NEW"``."""
    fresh: tuple[str, ...] = ()
    """Patterns of full names, as ``embedding.*``, of weights that start as the other recipe says although this model
    has them. With another tokenizer than this run's every embedding must be among them."""

    @staticmethod
    def examples(folder: Path) -> list[dict[str, Any]]:
        """What the conformance suite builds, since ``to`` has no default."""
        return [{"to": str(folder / "recipe.toml")}]
