"""Whether a GGUF file is a model that runs here, known without loading it: for `bitnet inspect`.

The checks are those of opening the model (config.py, weights.py, projections.py) as far as they need no weights, so a reason names the
same thing that `bitnet run` would refuse. Files in TQ1_0, TQ2_0 and Q2_0 can still fail when their blocks are read.
"""

from bitnet_cli.errors import BadFileError, BitnetError, UnsupportedError
from bitnet_cli.gguf_file.reader import GGUFFile, TensorType
from bitnet_cli.model.config import NO_POOLING, NO_TEXT, ModelConfig, read_config
from bitnet_cli.model.projections import PROJECTIONS, SMALLEST, extra_scale, require_layout, weight_name
from bitnet_cli.model.weights import check_tensors, embedding_info, head_info, rope_factors
from bitnet_cli.ternary import i2_s, i2_s_order
from bitnet_cli.text.pre_tokenizers import pre_tokenizer
from bitnet_cli.text.vocabulary import PREFIX, read_vocabulary


def why_not(file: GGUFFile, evidence: i2_s_order.Evidence, *, embeds: bool = False) -> str | None:
    """Why `bitnet run` would refuse an open file; None where nothing speaks against it. `evidence`: of the order of I2_S weights.

    embeds: why `bitnet embed` would, without --pooling.
    """
    try:
        _require_whole(file)
        config = read_config(file)
        for name in check_tensors(file, config):
            if name.endswith(".bias") or name.startswith("rope_f"):
                raise UnsupportedError(f"tensor {name}: changes the result and is not supported by {config.architecture} here")
        for name, info in file.tensors.items():
            if name.endswith(("norm.weight", "_norm_in.weight")) and info.type not in (TensorType.F32, TensorType.F16):
                raise UnsupportedError(f"tensor {name}: norms of type {info.type.name} are not read; F32 and F16 are")
        rope_factors(file, config)
        embedding_info(file)
        head_info(file)
        _require_projections(file, config)
        _require_tokenizer(file)
        if evidence.order == i2_s_order.ARM:
            raise UnsupportedError(f"I2_S in an order that is not run: {evidence}; `bitnet quantize IN OUT i2_s` rewrites it")
        if embeds != (config.pooling is not None):
            raise UnsupportedError(NO_POOLING if embeds else NO_TEXT)
    except BitnetError as error:
        return str(error).removeprefix(f"{file.path}: ")
    return None


def _require_whole(file: GGUFFile) -> None:
    count = file.metadata.get("split.count", 1)
    if isinstance(count, int) and count > 1:
        raise UnsupportedError(f"split.count: this is one of {count} parts; merge them with `llama-gguf-split --merge` first")
    if file.unread:
        tensor = next(iter(file.unread.values()))
        raise UnsupportedError(f"tensor {tensor.name}: type {tensor.type} is not read")


def _require_projections(file: GGUFFile, c: ModelConfig) -> None:
    for name in (weight_name(layer, projection) for layer in range(c.layers) for projection in PROJECTIONS):
        info = file.tensors[name]
        require_layout(file, info)
        scale = extra_scale(file, name)
        if info.type is TensorType.I2_S:
            scale *= file.raw(name)[-i2_s.TAIL : 4 - i2_s.TAIL].view("<f4")[0]
            if not SMALLEST <= scale < float("inf"):
                raise BadFileError(file.path, f"tensor {name}", f"has the scale {scale}, expected a positive number")


def _require_tokenizer(file: GGUFFile) -> None:
    kind = file.require_str(PREFIX + "model")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedError(f"{PREFIX}model: {kind!r:.40} is not supported, only gpt2 and llama are")
    vocabulary = read_vocabulary(file.metadata, str(file.path))
    if kind == "gpt2":
        pre_tokenizer(file.metadata, str(file.path), len(vocabulary.tokens))
