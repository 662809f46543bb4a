"""Updates by the sign of a running mean: an optimizer for MUSE."""
