"""Initializers and positions from the zeros of the zeta function, with controls."""
