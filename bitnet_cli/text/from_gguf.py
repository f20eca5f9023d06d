"""GGUF metadata -> its tokenizer: the one place that knows all kinds. Their libraries are imported when one is built."""

from collections.abc import Mapping

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.text.tokenizer import Tokenizer
from bitnet_cli.text.vocabulary import PREFIX, read_vocabulary, shown


def tokenizer_from_metadata(metadata: Mapping[str, object], source: str) -> Tokenizer:
    """The tokenizer that a GGUF file describes; `source` is the file's name, for messages.

    BadFileError: the metadata is inconsistent. UnsupportedError: a kind of tokenizer, or a way of splitting words, that is not known.
    The metadata is not kept: free it, it is half of the memory that loading a large vocabulary takes.
    """
    model = metadata.get(PREFIX + "model")
    if not isinstance(model, str):
        raise BadFileError(source, PREFIX + "model", "is missing or not a string, expected gpt2 or llama")
    if model == "gpt2":
        from bitnet_cli.text.byte_bpe import ByteLevelBPE

        return ByteLevelBPE(metadata, read_vocabulary(metadata, source))
    if model == "llama":
        from bitnet_cli.text.sentencepiece_bpe import SentencePieceBPE

        return SentencePieceBPE(metadata, read_vocabulary(metadata, source))
    raise UnsupportedError(f"{source}: {PREFIX}model: {shown(model)} is not supported, only gpt2 and llama are")
