"""Kernels over arrays. Nothing in here knows files, models or text.

From Python source to machine code, in the order in which it happens:

    step.py, heads.py, ternary.py ...   kernels are plain Python over arrays and the vector types of simd/, whose operations are LLVM's
    jit.py        `@kernel`, `@inlined`: Numba compiles them, without the GIL, once for each set of types. `@entry`: what Python calls
    target.py     for which CPU: any that runs the set, not the one at hand
    callees.py    what a kernel calls becomes a part of it: one tree of functions, optimised at once
    separate.py   `@separate` parts of that tree have code of their own, made by several processes and shared by all that call them
    frame.py      a named tuple of arrays and numbers -> one table of words; its layout says what stands where, by type only
    records.py    the table as Numba sees it: `w.scales[layer]` loads what it needs, so that a call between kernels hands over one address
    native.py     an entry and a layout -> an address: code that was kept is linked; what is missing of it is compiled, and kept
    private.py, compile_cache.py   where it is kept: a folder of the user's alone, by version of the package and set; who else brings code
    child.py      processes beside this one: they compile parts, and one tries whether code links before it is kept
    isa.py        which instruction set: chosen once, by the CPU's features; `naive` stands for NumPy, without any compiler

A step of a model is one call, `serve` in step.py, by every thread of a team:

    team.py       Team.run writes what is to be done into `control` and `Scratch`, announces it, and is itself thread 0
    control.py    the words that threads share;  barrier.py: how they wait for each other;  crew.py: how many of them take part
    step.py       run_step: in each layer norms, products, attention, feed-forward; threads meet at barriers
    split.py      who has which tokens and rows of weights: with many tokens each thread has its own, and needs no barrier
    heads.py      who appends and attends to what: rows of one text or of many, each with pages of the KV cache (kv_cache.py) of its own
    logits.py     and which kernel has the logits that are asked for: head_search.py, dense.py, grouped.py

    elementary.py, angles.py   exp, log, cos and sin of NumPy arrays that are the same on every machine; tables of RoPE's angles

Weights, cache and scratch are described in arrays.py, and made by the caller; what products take and give, in operands.py. Every kernel has
a twin in naive/ that reads like its formula: the specification, the oracle of its tests and of the self-test at start, and what runs where
nothing can be compiled. A new kernel is one module here, its twin, and a test of both at odd sizes.
"""
