"""Numbers of a run: added up, written down, shown."""
