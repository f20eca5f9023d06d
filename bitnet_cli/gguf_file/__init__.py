"""GGUF file <-> metadata, tensor table and memory map."""
