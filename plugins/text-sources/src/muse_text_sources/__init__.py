"""Sources of text: the State of the Union addresses, the Python library, local files, the Hugging Face hub."""

__version__ = "0.2.0"
