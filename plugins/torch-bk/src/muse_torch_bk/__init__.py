"""Kernel backends torch and reference."""
