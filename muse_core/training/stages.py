"""Options of the core's stages. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from muse_core.component import RecipePath
from muse_core.options.renames import RENAMES


@attrs.frozen(kw_only=True)
class TrainOptions:
    """Next-token cross-entropy with the layers' own losses."""


@attrs.frozen(kw_only=True)
class EvaluateOptions:
    """Held-out measures of the weights as they are; nothing is trained."""


@attrs.frozen(kw_only=True)
class ConvertOptions:
    """Goes on with another recipe, whose model takes over the weights that fit by name and shape."""

    to: RecipePath
    """Recipe file, relative to the recipe that names it. Its stages and ``init`` are not read: this run's go on."""
    rename: tuple[str, ...] = attrs.field(default=(), validator=RENAMES)
    """Parts of parameter names that change, as ``"OLD=NEW"``."""

    @staticmethod
    def examples(folder: Path) -> list[dict[str, Any]]:
        """What the conformance suite builds, since ``to`` has no default."""
        return [{"to": str(folder / "recipe.toml")}]
