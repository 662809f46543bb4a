"""The causal resolvent, token by token: a kernel backend for MUSE."""
