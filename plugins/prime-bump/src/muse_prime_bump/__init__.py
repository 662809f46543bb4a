"""A potential of bumps at logarithms of prime powers, and an initializer of the same weights."""

__version__ = "0.2.0"
