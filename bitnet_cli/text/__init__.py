"""Text <-> token ids, from GGUF metadata alone."""
