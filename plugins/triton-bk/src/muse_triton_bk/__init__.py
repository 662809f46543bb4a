"""Kernel backend triton."""
