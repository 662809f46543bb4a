"""One run over several processes, on torch's distributed parts. Nothing here is imported by a run of one process but
``environment`` and ``one``, which import no torch."""
