"""`bitnet convert`: Hugging Face folder -> GGUF file. The library does the work; this file says what happened, on stderr."""

import time
from pathlib import Path

from bitnet_cli.checkpoint.folder import open_checkpoint
from bitnet_cli.checkpoint.to_gguf import architecture, model_metadata, model_tensors
from bitnet_cli.checkpoint.tokenizer import tokenizer_metadata
from bitnet_cli.commands.reporting import Reporter
from bitnet_cli.errors import UsageError
from bitnet_cli.gguf_file.part_file import check_target
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import refuse_same_file, write_gguf

EMBEDDING_TYPES = {"f16": TensorType.F16, "q8_0": TensorType.Q8_0, "q6_k": TensorType.Q6_K, "q4_0": TensorType.Q4_0}


def convert(
    source: Path, output: Path, *, embedding_type: str = "f16", flavour: str | None = None, force: bool = False, quiet: bool = False
) -> None:
    """Raises BitnetError, and leaves no output file, for anything that cannot be converted faithfully."""
    if flavour not in (None, "master"):
        raise UsageError(f"--flavour {flavour}: expected master")
    check_target(output, force)  # first of all: a minute of reading for nothing is unkind
    report = Reporter(quiet)
    start = time.perf_counter()
    checkpoint = open_checkpoint(source, float_is_master=flavour == "master")
    for path in checkpoint.files:
        refuse_same_file(path, output)
    tensors = model_tensors(checkpoint, EMBEDDING_TYPES[embedding_type])
    tokenizer = tokenizer_metadata(source, checkpoint.config)
    for note in tokenizer.notes:
        report.note(note)
    metadata = model_metadata(checkpoint) | tokenizer.values
    with report.progress("converting") as progress:
        size = write_gguf(output, architecture(checkpoint), metadata, tensors, force=force, progress=progress)
    kept = sum(p.flavour is None for p in checkpoint.projections.values())
    details = [
        checkpoint.config.family.architecture,
        f"flavour {checkpoint.flavour.value}",
        f"scale: {checkpoint.flavour.scale_rule}",
        f"{len(tensors)} tensors" + (f", {kept} projections kept in F16" if kept else ""),
    ]
    report.summary(output, details, size, time.perf_counter() - start)
