"""Skips steps with unusually large gradients: a safety monitor for MUSE."""
