"""Pictures and tables of runs: what a run directory holds, read without torch, as a page, as PNGs and as JSON."""
