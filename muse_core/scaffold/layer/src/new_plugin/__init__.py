"""A causal convolution, channel by channel: a layer for MUSE."""
