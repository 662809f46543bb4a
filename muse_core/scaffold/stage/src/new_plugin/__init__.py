"""Next-token training that keeps the scores normalised: a stage for MUSE."""
