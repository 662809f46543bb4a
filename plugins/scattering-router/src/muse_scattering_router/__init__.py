"""Experts, a router by scattering phases, and early exit."""

__version__ = "0.2.0"
