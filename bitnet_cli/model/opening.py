"""A GGUF file -> what a text needs: its tokenizer and an engine with its scheduler. `engine.start()` then compiles, or loads what was."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from bitnet_kernels import isa

from bitnet_cli.errors import UnsupportedError, UsageError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.machine.threads import physical_cores
from bitnet_cli.model import given
from bitnet_cli.model.checks import check_text
from bitnet_cli.model.config import read_config
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.scheduler import Scheduler
from bitnet_cli.text.chat.choice import ChatFacts, chat_facts
from bitnet_cli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Options:
    """How a model runs. threads: 0 takes the physical cores; mapped: as open_gguf; the rest as Engine."""

    context: int = 0
    threads: int = 0
    cache_type: str = "f16"
    weight_bits: str = "auto"
    activations: str = "auto"
    query_type: str = "f32"
    mapped: bool = True
    cache_tokens: int = 0
    cache_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("threads", "context", "cache_tokens", "cache_bytes"):
            given.number(name, getattr(self, name), 0, whole=True)


class OpenModel(NamedTuple):
    path: Path
    tokenizer: Tokenizer
    scheduler: Scheduler
    chat: ChatFacts  # what text.chat.choice.choose asks for
    data_start: int  # byte of the file at which tensors begin
    files: tuple[Path, ...]  # the file, or all of a split model

    @property
    def engine(self) -> Engine:
        return self.scheduler.engine


def open_model(path: Path, options: Options, *, embeds: bool = False) -> OpenModel:
    """Open a model; close its scheduler after use. embeds: an embedding model is one as well.

    BadFileError, UnsupportedError: the file is damaged, or not a model that runs here.
    """
    try:
        isa.chosen()
        with open_gguf(path, mapped=options.mapped) as gguf:
            # The tokenizer first: what building it needs for a moment is free again before the weights are touched.
            tokenizer = check_text(gguf, read_config(gguf), embeds=embeds)
            chat = chat_facts(gguf.metadata, path)
            data_start = min(info.offset for info in gguf.tensors.values())
            files = tuple(place.path for place in gguf.files)
            wanted = asdict(replace(options, threads=options.threads or physical_cores()))
            del wanted["mapped"]
            engine = Engine(gguf, **wanted)
    except isa.InstructionSetError as error:
        raise UnsupportedError(str(error)) from None
    return OpenModel(path, tokenizer, Scheduler(engine), chat, data_start, files)


def prompt_ids(tokenizer: Tokenizer, text: str, *, special: bool = False) -> list[int]:
    """Ids of a text to continue. special: names of control tokens in it become those tokens.

    An empty text begins one; UsageError where the model has no token for that.
    """
    ids = tokenizer.encode(text, special=special)
    if ids:
        return ids
    if tokenizer.bos_id is None:
        raise UsageError("the prompt is empty, and this model has no token to begin a text with")
    return [tokenizer.bos_id]
