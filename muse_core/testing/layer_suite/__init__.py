"""The conformance suite of layers, by what is checked."""
