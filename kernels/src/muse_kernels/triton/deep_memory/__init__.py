"""The scan of the deep memory over its chunks, in Triton."""

from .operator import deep_memory

__all__ = ["deep_memory"]
