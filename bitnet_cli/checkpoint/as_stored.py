"""What config.json leaves open and the tensors decide: whether the head is the embedding, and whether BitNet's sub-norms are there.

Each decision is a note for the user.
"""

import dataclasses
from collections.abc import Collection

from bitnet_cli.checkpoint.config import FolderConfig
from bitnet_cli.errors import UnsupportedError

HEAD = "lm_head.weight"
SUB_NORMS = ("attn_sub_norm", "ffn_sub_norm")
# Without sub-norms a SiLU model is a Llama, which llama.cpp reads; of a ReLU² one, which nobody else reads, a key says what it lacks.
WITHOUT_SUB_NORMS = {"relu2": "bitnet-b1.58", "silu": "llama"}


def as_stored(config: FolderConfig, names: Collection[str]) -> FolderConfig:
    """`config` of a folder with tensors of these names. UnsupportedError where it says that there are no sub-norms, and there are."""
    return _head(_sub_norms(config, names), names)


def _head(config: FolderConfig, names: Collection[str]) -> FolderConfig:
    if config.tied is not None:
        return config
    tied = HEAD not in names
    told = (f"{HEAD} is not here and config.json has no tie_word_embeddings: the head is the embedding",) if tied else ()
    return dataclasses.replace(config, tied=tied, notes=(*config.notes, *told))


def _sub_norms(config: FolderConfig, names: Collection[str]) -> FolderConfig:
    family = config.family
    sources = tuple(f"{source}.weight" for source, target in family.layer.items() if target in SUB_NORMS)
    if not sources or config.use_sub_norms:
        return config
    found = next((name for name in names if name.endswith(sources)), None)
    if found is not None:
        if config.use_sub_norms is False:
            raise UnsupportedError(f"{config.path}: use_sub_norms: false, but {found} is here")
        return config
    if not any(name.endswith("_proj.weight") for name in names):
        return config  # nothing of a model is here; what is missing is told elsewhere
    layer = {source: target for source, target in family.layer.items() if target not in SUB_NORMS}
    pairs = WITHOUT_SUB_NORMS[config.activation] == "llama"
    family = dataclasses.replace(family, layer=layer, gguf=WITHOUT_SUB_NORMS, pairs=pairs)
    told = (
        ()
        if config.use_sub_norms is False
        else (f"no {sources[0]} in any layer: a model without sub-norms, as if use_sub_norms were false",)
    )
    return dataclasses.replace(config, family=family, use_sub_norms=False, notes=(*config.notes, *told))
