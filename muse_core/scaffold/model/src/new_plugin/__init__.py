"""A neural n-gram model: a whole model for MUSE."""
