"""Rows of numbers times a matrix of 8-bit integers by Triton kernels."""

from .operator import int8_product

__all__ = ["int8_product"]
