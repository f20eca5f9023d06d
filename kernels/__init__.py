"""Kernels over arrays. Nothing in here knows files, models or text."""
