"""A memory of leaky averages: the example of a plugin from outside the project."""
