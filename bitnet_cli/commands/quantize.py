"""`bitnet quantize`: GGUF file with float projections -> the same model with ternary ones, as I2_S. Metadata is copied as it is."""

import time
from pathlib import Path

from bitnet_cli.checkpoint.gguf_source import GGUFSource
from bitnet_cli.checkpoint.to_gguf import FILE_TYPE_I2_S, QUANTIZATION_VERSION
from bitnet_cli.commands.convert import EMBEDDING_TYPES
from bitnet_cli.commands.reporting import Reporter
from bitnet_cli.errors import UsageError
from bitnet_cli.gguf_file.metadata import Typed, ValueType
from bitnet_cli.gguf_file.part_file import check_target
from bitnet_cli.gguf_file.writer import refuse_same_file, write_gguf


def quantize(
    source: Path, output: Path, kind: str = "i2_s", *, embedding_type: str | None = None, force: bool = False, quiet: bool = False
) -> None:
    """Raises BitnetError, and leaves no output file, for anything that cannot be packed."""
    if kind != "i2_s":
        raise UsageError(f"{kind}: expected i2_s")
    refuse_same_file(source, output)
    check_target(output, force)
    report = Reporter(quiet)
    start = time.perf_counter()
    model = GGUFSource(source)
    tensors = model.packed(EMBEDDING_TYPES[embedding_type] if embedding_type else None)
    metadata = dict(model.metadata)
    metadata["general.file_type"] = Typed(FILE_TYPE_I2_S, ValueType.UINT32)
    metadata.setdefault("general.quantization_version", Typed(QUANTIZATION_VERSION, ValueType.UINT32))
    with report.progress("packing") as progress:
        size = write_gguf(output, model.architecture, metadata, tensors, force=force, progress=progress)
    if model.rounded:
        report.note(
            f"{len(model.rounded)} projections were not ternary and were rounded by absmean, "
            f"which is right for BitNet master weights only: {', '.join(model.rounded[:3])} ..."
        )
    if model.trailing:
        report.note(f"{source}: {model.trailing} bytes after the last tensor were left out")
    details = [
        model.architecture,
        f"{len(tensors)} tensors",
        f"projections: {model.kept} ternary already, {len(model.rounded)} by absmean, {model.copied} copied as I2_S",
    ]
    report.summary(output, details, size, time.perf_counter() - start)
