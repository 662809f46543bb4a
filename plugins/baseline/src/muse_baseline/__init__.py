"""Attention with rotary positions and feed-forward layers: what a Transformer recipe needs."""
