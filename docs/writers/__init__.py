"""Writes the pages of the site that are read from the code: page → Markdown, without mkdocs."""

from __future__ import annotations

from muse_core.plugins import load_plugins

from . import command_line, components, contracts, kernels, listings, recipe, telemetry


def generated_pages() -> dict[str, str]:
    """Every generated page by its path in the site's sources, such as ``reference/recipe.md``.

    Raises PluginError when a distribution of this repository is not installed or does not load.
    """
    registry = load_plugins()
    return {
        **components.pages(registry),
        **recipe.pages(),
        **contracts.pages(),
        **kernels.pages(),
        **command_line.pages(),
        **telemetry.pages(),
        **listings.pages(),
    }
