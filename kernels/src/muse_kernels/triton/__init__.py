"""Every operation as Triton kernels in float32; importing this imports triton."""

from ..refusals import refuse_triton as refuse

__all__ = ["refuse"]
