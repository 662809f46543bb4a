"""Kernel backends native, torch and reference."""
