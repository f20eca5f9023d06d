"""Hugging Face folder -> config and named arrays, lazily, one tensor at a time."""
