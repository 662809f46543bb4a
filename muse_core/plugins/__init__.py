"""Plugins: discovery from metadata, loading one by one, and finding what a recipe names. Imports no torch."""

from muse_core.plugins.discovery import Discovered, discover
from muse_core.plugins.loading import load_plugin, load_plugins
from muse_core.plugins.registry import Loaded, Problem, Registered, Registry, UnknownComponent

__all__ = [
    "Discovered",
    "Loaded",
    "Problem",
    "Registered",
    "Registry",
    "UnknownComponent",
    "discover",
    "load_plugin",
    "load_plugins",
]
