"""Fast weights: a memory layer for MUSE."""
