"""`bitnet bench`: how fast a model runs on this machine, what limits it, and what it costs in energy. docs/bench.md explains the output.

plan.py      the lists of options -> setups of an engine and tests of each
measure.py   one text -> samples of prefill and decode, seconds of its parts
kernels.py   the same, kernel by kernel
shapes.py    published shapes -> a temporary GGUF file of random ternary weights; project.py: shapes that memory does not hold
rows.py      samples -> rows with llama-bench's keys
output.py    rows -> table, Markdown, CSV, JSON, JSON lines
command.py   all of that in order: the command itself
compare.py   `bitnet bench compare`;  report.py: `bitnet bench report`;  plot.py: both kinds of figures
"""
