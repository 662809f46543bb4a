"""A recipe as a plain table that remembers where each key came from."""

from __future__ import annotations

import os
from typing import Any

import attrs

from muse_core.recipe.positions import Path

Places = dict[Path, tuple[str, int]]
"""Key path → (file, line)."""


@attrs.frozen
class RecipeText:
    """A plain table and where it came from."""

    table: dict[str, Any]
    where: str
    """File, or what stands for it in messages."""
    places: Places
    """Key path → (file, line); line 0 for what stands in no file."""
    text: str = ""
    """The file as it was given, before ``extends`` and overrides."""

    def place(self, path: Path) -> tuple[str, int]:
        """Place of a key, or of the nearest table around it that the recipe writes."""
        while path:
            if path in self.places:
                return self.places[path]
            path = path[:-1]
        return self.where, 0

    def folder(self, path: Path) -> str:
        """Absolute folder that a relative path at this key is relative to: that of the file that writes the key, and
        the working directory for what stands in no file."""
        file, line = self.place(path)
        return os.path.dirname(os.path.abspath(file)) if line else os.getcwd()

    def locate(self, path: Path) -> str:
        """The same as ``"file:line"``."""
        file, line = self.place(path)
        return f"{file}:{line}" if line else file
