"""Causal attention of bounded Hilbert–Schmidt norm as a layer."""
