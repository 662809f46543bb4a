"""Recipes: TOML to checked attrs instances, resolved recipes and locks. Imports no torch."""

from muse_core.recipe.check import Checked, check_table, read_recipe
from muse_core.recipe.writing import to_toml

__all__ = ["Checked", "check_table", "read_recipe", "to_toml"]
