"""Normal values without tails: an initializer for MUSE."""
