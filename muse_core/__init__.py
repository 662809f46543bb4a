"""The core of MUSE: contracts, plugin loading, recipes, the model stack and one training loop. It imports no plugin."""

__version__ = "0.2.0"

API_VERSION = 2
"""Major version of the hook API; the entry-point group is ``muse.v<API_VERSION>``."""
