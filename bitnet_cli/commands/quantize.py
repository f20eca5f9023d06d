"""`bitnet quantize`: GGUF file -> the same model with its ternary weights in another type. Metadata is copied as it is."""

import time
from pathlib import Path

from bitnet_cli.checkpoint.gguf_source import GGUFSource
from bitnet_cli.checkpoint.packing import FILE_TYPES, OUTTYPES, QUANTIZATION_VERSION, file_type, type_notes
from bitnet_cli.checkpoint.rows import row_notes
from bitnet_cli.commands.convert import EMBEDDING_TYPES
from bitnet_cli.commands.loading import find_model
from bitnet_cli.commands.reporting import Reporter
from bitnet_cli.errors import UsageError
from bitnet_cli.gguf_file.metadata import Typed, ValueType
from bitnet_cli.gguf_file.part_file import check_target
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import refuse_same_file, write_gguf
from bitnet_cli.model.checks import why_not
from bitnet_cli.ternary import i2_s_order

I2_S_LAYOUTS = {"auto": None, "x86": i2_s_order.PUBLISHED, "arm": i2_s_order.ARM}


def quantize(
    source: str | Path,
    output: Path,
    kind: str = "i2_s",
    *,
    embedding_type: str | None = None,
    i2_s_layout: str = "auto",
    ternarise: bool = False,
    force: bool = False,
    quiet: bool = False,
) -> None:
    """Raises BitnetError, and leaves no output file, for anything that cannot be packed. source: as find_model takes it."""
    source = find_model(str(source))
    if kind not in OUTTYPES:
        raise UsageError(f"{kind}: expected one of {', '.join(OUTTYPES)}")
    weight_type = OUTTYPES[kind]
    refuse_same_file(source, output)
    check_target(output, force)
    report = Reporter(quiet)
    start = time.perf_counter()
    model = GGUFSource(source, I2_S_LAYOUTS[i2_s_layout], ternarise)
    for file in model.files:  # of a split model, the output may not be any part
        refuse_same_file(file, output)
    tensors = model.tensors(weight_type, EMBEDDING_TYPES[embedding_type] if embedding_type else None)
    metadata = dict(model.metadata)
    metadata["general.file_type"] = Typed(FILE_TYPES[file_type(weight_type, tensors)], ValueType.UINT32)
    metadata.setdefault("general.quantization_version", Typed(QUANTIZATION_VERSION, ValueType.UINT32))
    metadata.pop(i2_s_order.KEY, None)
    if i2_s_layout != "auto" and weight_type is TensorType.I2_S:  # the user knows; nobody need guess again
        metadata[i2_s_order.KEY] = Typed(i2_s_order.PUBLISHED, ValueType.STRING)
    with report.progress("packing") as progress:
        size = write_gguf(output, model.architecture, metadata, tensors, force=force, progress=progress)
    told = row_notes(weight_type) if model.by_row else []
    for note in _reading_notes(model, i2_s_layout) + type_notes(model.architecture, weight_type, tensors) + told:
        report.note(note)
    with open_gguf(output) as written:
        verdict = why_not(written)
    if verdict.reason is not None:
        report.note(f"`bitnet run` refuses the file: {verdict.reason}")
    if model.trailing:
        report.note(f"{source}: {model.trailing} bytes after the last tensor were left out")
    details = [
        model.architecture,
        f"{len(tensors)} tensors",
        f"projections: {model.kept} ternary already, {len(model.rounded)} by absmean, {model.packed} packed before"
        + (f", {model.several} with several scales" if model.several else ""),
    ]
    report.summary(output, details, size, time.perf_counter() - start)


def _reading_notes(model: GGUFSource, i2_s_layout: str) -> list[str]:
    told = []
    if model.rounded:
        told.append(
            f"{len(model.rounded)} projections were not ternary and were rounded by absmean, "
            f"which is right for BitNet master weights only: {', '.join(model.rounded[:3])} ..."
        )
    if model.doubled:
        told.append(f"{len(model.doubled)} projections have the value 2 beside -1, 0, 1, which is kept, and which no ternary model has")
    judged, used = model.evidence.order, i2_s_order.ARM if model.arm else i2_s_order.PUBLISHED
    if i2_s_layout == "auto" and model.arm:
        told.append(f"I2_S was read in the order of ARM builds, because {model.evidence}; --i2s-layout says otherwise")
    elif i2_s_layout != "auto" and judged not in (None, used):
        told.append(f"I2_S was read as --i2s-layout says, against the weights: {model.evidence}")
    return told
