"""The core of MUSE: contracts, plugin loading, recipes, the model stack and one training loop. It imports no plugin."""

__version__ = "0.2.0"

API_VERSION = 2
"""Major version of the hook API; the entry-point group is ``muse.v<API_VERSION>``."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muse_core.api import build, load, resume, train
    from muse_core.report.compared import compare
    from muse_core.report.listing import runs

__all__ = ["API_VERSION", "__version__", "build", "compare", "load", "resume", "runs", "train"]

_MODULES = {
    **dict.fromkeys(("build", "load", "resume", "train"), "muse_core.api"),
    "compare": "muse_core.report.compared", "runs": "muse_core.report.listing",
}


def __getattr__(name: str) -> object:
    """The functions of docs/guide/python.md, imported when they are asked for; ``muse_core.api`` needs torch."""
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
