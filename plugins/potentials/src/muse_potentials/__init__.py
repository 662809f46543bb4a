"""Potentials of the resolvent: hermitian, non-hermitian, memory feedback."""
