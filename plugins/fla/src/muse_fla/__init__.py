"""Kernel backend fla."""
