"""The promises about failures, each with the tests that hold it to it. Imports no torch.

Every test here carries ``@pytest.mark.promise("C1")`` and has a short form, which the project's own tests run, and
where chance is involved a long one: ``muse selftest --long``.
"""

PROMISES = {
    "C1": "a killed run loses no acknowledged checkpoint and computes the same losses",
    "C2": "whatever a power failure leaves, nothing acknowledged is lost or loads changed",
    "C3": "a full or defective disk leaves the previous checkpoint as it was",
    "C4": "a damaged checkpoint is rejected and the one before it loaded",
    "C5": "a run stopped at any step ends in the same bits",
    "C6": "a signal at any moment leaves a checkpoint and an exit code",
    "C7": "the checkpoints kept, and the space they need, are as stated",
    "C8": "one process per run directory, and a killed one does not block",
    "C9": "a run of several processes of which one is lost ends within a minute and names it",
    "M1": "what is not finite is caught before the optimiser",
    "M2": "damage to the weights is found and undone to the last bit",
    "M3": "a healthy run is not rolled back",
    "M4": "a poisoned batch costs at most one rollback, also across a kill",
    "M5": "a run that keeps diverging halts",
    "M6": "a planted leak is caught, and failing probes harm nothing",
    "S1": "hostile checkpoint files run no code",
    "S2": "any damaged recipe ends in sentences, within bounds of time and memory",
    "S3": "recipes beyond the limits of size are refused before they are parsed",
    "S4": "nothing is written outside the run directory",
    "S5": "a broken plugin is named and leaves the others alone",
    "S6": "the lock records what a run depends on, and resuming refuses drift",
}
"""Name of a promise → what it says."""
