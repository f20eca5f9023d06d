"""Tasks of lm-evaluation-harness with a model of ours, in one process: what `bitnet eval` runs.

harness.py   a model as the harness wants it, over bitnet_cli.load
tasks/       tasks over data that packages carry, since those of the harness download theirs
"""
