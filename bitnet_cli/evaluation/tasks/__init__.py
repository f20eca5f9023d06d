"""Tasks of lm-evaluation-harness: one file each, and data.py, which finds their data."""
