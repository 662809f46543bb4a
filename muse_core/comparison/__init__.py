"""Comparing recipes: a plan of runs that differ in what is asked about and in nothing else, done in any
number of calls, and a table with paired intervals; and what a training step of a recipe costs."""
