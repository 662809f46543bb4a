"""Gates that a recipe passes before it is trained at length: each runs for real, and each can fail."""
