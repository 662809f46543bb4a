"""Mixer layer that applies the causal resolvent of a tridiagonal Hamiltonian."""
