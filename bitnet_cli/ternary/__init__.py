"""Float weights -> {-1, 0, 1} and a scale; ternary values <-> packed bytes, one module a layout.

These modules are the readable specification of each layout, in NumPy; the kernels read the same bytes faster.
"""
