"""Experiment trackers as sinks for MUSE."""
