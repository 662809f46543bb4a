"""The core of MUSE: contracts, plugin loading, recipes, the model stack and one training loop. It imports no plugin."""

__version__ = "0.2.0"

API_VERSION = 2
"""Major version of the hook API; the entry-point group is ``muse.v<API_VERSION>``."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muse_core.api import build, load, train

__all__ = ["API_VERSION", "__version__", "build", "load", "train"]


def __getattr__(name: str) -> object:
    """``load``, ``build`` and ``train`` of ``muse_core.api``, imported when they are asked for: they need torch."""
    if name in ("build", "load", "train"):
        from muse_core import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
