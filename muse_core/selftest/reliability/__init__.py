"""Experiments that try to make a run lose or corrupt what it saved. Tests run them short, by command they run long."""
