"""Activation schemes: what is done to the inputs of a model's projections before they meet ternary weights.

One name says all of it: `quantization_config.activation_type` in config.json, `<arch>.activation_type` in a GGUF file. `--activations`
asks for another scheme than the one that the model was trained with. kernels/quantise.py and kernels/inputs.py do the work.
"""

from bitnet_cli.errors import UnsupportedError, UsageError, option

INT8, FLOAT = "int8", "float"
A4_8, A4_8_FP4 = "a4.8", "a4.8-fp4"
V2_A8, V2_A4 = "v2-a8", "v2-a4"
SCHEMES = {
    INT8: "int8 everywhere (BitNet b1.58, arXiv 2402.17764)",
    FLOAT: "not rounded (ternary weights only, as in TriLM)",
    A4_8: "INT4 before q, k, v, gate and up, the largest half in int8 before o, int8 before down (BitNet a4.8, arXiv 2411.04965)",
    A4_8_FP4: "FP4 (E2M1), int8 before down (BitNet a4.8, arXiv 2411.04965, section 2.3)",
    V2_A8: "int8, with a Hadamard transform before o and down (BitNet v2, arXiv 2504.18415)",
    V2_A4: "INT4, with a Hadamard transform before o and down (BitNet v2, arXiv 2504.18415)",
}
SPARSE = (A4_8,)  # schemes that keep only the largest inputs of o
TOP_K = 0.5  # share of them; `quantization_config.top_k`, `<arch>.activation_top_k`

# Other names of hidden activations, for the same function (transformers, activations.py): `hidden_act`, `<arch>.hidden_activation`.
SAME_ACTIVATIONS = {"swish": "silu", "gelu_new": "gelu_pytorch_tanh", "gelu_python_tanh": "gelu_pytorch_tanh"}

AUTO = "auto"
# What `--activations` makes of each scheme that a model was trained with.
_OTHER = {
    "a8": {INT8: INT8, A4_8: INT8, A4_8_FP4: INT8, V2_A8: V2_A8, V2_A4: V2_A8},
    "a4": {INT8: A4_8, A4_8: A4_8, A4_8_FP4: A4_8, V2_A8: V2_A4, V2_A4: V2_A4},
    "fp4": {INT8: A4_8_FP4, A4_8: A4_8_FP4, A4_8_FP4: A4_8_FP4},
}
WANTED = (AUTO, *_OTHER)


def known_scheme(name: object, where: str) -> str:
    """`name`; UnsupportedError, which begins with `where` (file and field), if there is no such scheme."""
    if not isinstance(name, str) or name not in SCHEMES:
        raise UnsupportedError(f"{where}: {str(name)[:40]!r} is not supported; supported are {', '.join(SCHEMES)}")
    return name


def scheme_for(trained: str, wanted: str, relu2: bool, path: str) -> str:
    """Scheme to run a model with. wanted: one of WANTED; relu2: whether its hidden units are ReLU².

    UsageError: no such wish. UnsupportedError: there is none, or four bits are asked of a model whose hidden units were not made for them.
    """
    if wanted == AUTO:
        return trained
    if wanted not in _OTHER:
        raise UsageError(f"{option('activations')} is {wanted!r:.40}, expected {', '.join(WANTED)}")
    scheme = _OTHER[wanted].get(trained)
    if scheme is None:
        raise UnsupportedError(f"{path}: activations {wanted}: not supported for a model trained with '{trained}'")
    if scheme != trained and scheme in (A4_8, A4_8_FP4) and not relu2:
        raise UnsupportedError(f"{path}: activations {wanted}: supported for models with ReLU², which this one is not")
    return scheme


def post_hoc_note(trained: str, scheme: str) -> str | None:
    """What a user must know who runs a model with a scheme that it was not trained with."""
    if scheme == trained:
        return None
    return f"activations {scheme} are post-hoc: this model was trained with {trained}; `bitnet perplexity` shows what that costs"
