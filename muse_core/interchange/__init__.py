"""Roads to and from other tools: directories for Hugging Face transformers, and weights from safetensors files."""
