"""The short causal convolution in front of the fast weights; the core has it, since layers of other plugins use it."""

from muse_core.model.convolution import CausalConvolution, carried

__all__ = ["CausalConvolution", "carried"]
