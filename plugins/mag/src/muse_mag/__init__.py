"""Memory as gate: window attention with persistent tokens, gated by what a memory answers."""

__version__ = "0.2.0"
