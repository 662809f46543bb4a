"""The best few experts of a token, and a layer of experts: a router for MUSE."""
