"""Every operation as Triton kernels in float32; importing this imports triton."""

from ..refusals import refuse_triton as refuse
from .fast_weights import fast_weights

__all__ = ["fast_weights", "refuse"]
