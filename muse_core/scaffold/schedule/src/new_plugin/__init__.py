"""A power of what is left: a schedule for MUSE."""
