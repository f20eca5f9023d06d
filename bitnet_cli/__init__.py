"""Run 1-bit large language models (ternary weights) on an ordinary CPU."""

__version__ = "0.1.0"
