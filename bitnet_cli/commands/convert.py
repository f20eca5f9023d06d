"""`bitnet convert`: Hugging Face folder or hub id -> GGUF file. The library does the work; this file says what happened, on stderr.

`--dry-run` says on stdout what would happen: it reads and makes all that a conversion does, and writes nothing.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_cli.activations import INT8
from bitnet_cli.checkpoint.digests import check_pins, parse_pins
from bitnet_cli.checkpoint.flavours import Flavour
from bitnet_cli.checkpoint.folder import Checkpoint, open_checkpoint
from bitnet_cli.checkpoint.hub import Listing, Repository, UnreachableError
from bitnet_cli.checkpoint.hub_id import is_hub_id
from bitnet_cli.checkpoint.packing import OUTTYPES, file_type, type_notes
from bitnet_cli.checkpoint.plan import ConversionPlan, make_plan
from bitnet_cli.checkpoint.rows import BY_ROW, read_rows, row_notes
from bitnet_cli.checkpoint.to_gguf import architecture, model_metadata, model_tensors
from bitnet_cli.checkpoint.tokenizer import tokenizer_metadata
from bitnet_cli.checkpoint.uniform import uniform_projections
from bitnet_cli.commands.reporting import Progress, Reporter, print_json, row
from bitnet_cli.errors import UnsupportedError, UsageError
from bitnet_cli.gguf_file.part_file import check_target
from bitnet_cli.gguf_file.planned import PlannedFile
from bitnet_cli.gguf_file.types import TensorType, nbytes
from bitnet_cli.gguf_file.writer import OutputTensor, refuse_same_file, write_gguf
from bitnet_cli.model.checks import check_plan
from bitnet_cli.model.names import output_folder
from bitnet_cli.ternary.layouts import Scales

EMBEDDING_TYPES = {name: TensorType[name.upper()] for name in ("f32", "f16", "bf16", "q8_0", "q6_k", "q4_0")}


ASSUMED_MASTER = (
    "nothing in the folder says that these weights were trained for ternary values; they are rounded by absmean because --ternarise "
    "says so, and a model that was not trained for it writes nonsense"
)
SCALE_OF_TENSOR = "one scale a tensor, as BitNet models are trained; for one a row (axolotl) there is --ternarise-by row"
SCALE_OF_ROW = "one scale a row, as axolotl trains; for one a tensor (BitNet) there is --ternarise-by tensor"
SCALE_OF_GROUP = "one float16 scale for each group of neighbours in a row, as Bonsai has them"
INT8_BY_GROUP = (
    "int8 activations with one scale for each 128 of a token, where training had floats: what that adds is in the noise of an evaluation; "
    "--activations float rounds nothing, at half the speed"
)
ASSUMED_INT8 = (
    "int8 activations, as BitNet models are trained, though nothing says so; a model that is ternary in its weights only (TriLM) wants "
    "--activations float"
)


class Master(NamedTuple):
    """Whether float weights may be BitNet master weights, and what one scale of them is taken of: a tensor, a row, or a group."""

    allowed: bool
    by_row: bool = False
    group: int = 0  # neighbours of a row


class HubOptions(NamedTuple):
    """How to reach a repository (see checkpoint/hub.py). sha256: what its files, or a folder's, must have (see checkpoint/digests.py)."""

    revision: str | None = None
    token: str | None = None
    cache_dir: Path | None = None
    offline: bool = False
    sha256: Sequence[str] = ()


def convert(
    source: str | Path,
    output: Path | None = None,
    *,
    outtype: str = "auto",
    embedding_type: str = "f16",
    ternarise: bool = False,
    ternarise_by: str | None = None,
    group: int = 0,
    activations: str = "auto",
    hub: HubOptions = HubOptions(),  # noqa: B008
    force: bool = False,
    dry_run: bool = False,
    as_json: bool = False,
    quiet: bool = False,
) -> None:
    """Raises BitnetError, and leaves no output file, for anything that cannot be converted faithfully.

    ternarise_by: `tensor` or `row`, what one scale is taken of; group: so many neighbours of a row. Any of them is `ternarise` too.
    """
    from_hub, pins = is_hub_id(str(source)), parse_pins(hub.sha256)
    if hub.revision is not None and not from_hub:
        raise UsageError(f"--revision is for a repository of the hub (owner/name); {source} is not one")
    target = output or output_folder() / f"{_stem(str(source))}.gguf"
    if not dry_run and (output is not None or target.parent.exists()):
        check_target(target, force)  # first of all: a minute of reading for nothing is unkind
    report = Reporter(quiet)
    start = time.perf_counter()
    folder = Path(source)
    if from_hub:
        found = _from_hub(str(source), hub, report, dry_run, as_json)
        if found is None:
            return
        folder = found
    if unpinned := check_pins(folder, pins):
        report.warn(f"--sha256 says nothing of {', '.join(unpinned)}; NAME=DIGITS pins them too")
    if group and ternarise_by is not None:
        raise UsageError("--group and --ternarise-by: each says what one scale is taken of; one of them is enough")
    master = Master(ternarise or ternarise_by is not None or group > 0, ternarise_by == "row", group)
    plan = planned(folder, str(source), target, outtype, embedding_type, master, activations)
    if dry_run:
        with report.progress("reading") as progress:
            plan.make_all(progress)
        _show(plan, as_json)
        return
    for note in plan.notes:
        report.note(note)
    for warning in plan.warnings:
        report.warn(warning)
    target.parent.mkdir(parents=output is None, exist_ok=True)
    with report.progress("converting") as progress:
        size = write_gguf(target, plan.facts.architecture, plan.metadata, plan.tensors, force=force, progress=progress)
    report.summary(target, _details(plan), size, time.perf_counter() - start)
    if as_json:
        print_json(_as_json(plan))


@dataclass(frozen=True)
class Conversion:
    """What a conversion will write, judged: `planned` raises where it would not run, unless its type was asked for."""

    source: str
    target: Path
    checkpoint: Checkpoint
    metadata: dict[str, Any]
    tensors: list[OutputTensor]
    facts: ConversionPlan
    notes: list[str]
    warnings: list[str]

    def make_all(self, progress: Progress | None = None) -> None:
        """Make every tensor and keep none: ends as the conversion would for weights that cannot be converted."""
        done, sizes = 0, [nbytes(tensor.type, tensor.shape) for tensor in self.tensors]
        for tensor, size in zip(self.tensors, sizes, strict=True):
            tensor.produce()
            done += size
            if progress is not None:
                progress(tensor.name, done, sum(sizes))


def planned(
    folder: Path,
    source: str,
    target: Path,
    outtype: str = "auto",
    embedding_type: str = "f16",
    master: Master = Master(True),  # noqa: B008
    activations: str = "auto",
) -> Conversion:
    """What `convert` would write. BitnetError: what it would end with before the first tensor. outtype: `auto` or one of OUTTYPES."""
    checkpoint = open_checkpoint(folder, float_is_master=master.allowed, by_row=master.by_row, group=master.group, activations=activations)
    for path in checkpoint.files:
        refuse_same_file(path, target)
    weight_type = OUTTYPES.get(outtype, TensorType.I2_S)
    tensors = model_tensors(checkpoint, EMBEDDING_TYPES[embedding_type], weight_type)
    tokenizer = tokenizer_metadata(folder, checkpoint.config)
    metadata = model_metadata(checkpoint, file_type(weight_type, tensors)) | tokenizer.values
    plan = make_plan(checkpoint, architecture(checkpoint), metadata, tensors)
    notes = tokenizer.notes + type_notes(plan.architecture, weight_type, tensors) + _assumptions(checkpoint, activations, weight_type)
    scales: dict[str, Scales] = {f"{name}.weight": p.scales.scales for name, p in checkpoint.projections.items() if p.scales is not None}
    if checkpoint.config.activation == "relu2" and checkpoint.flavour in BY_ROW:  # whether they differ matters in these models only
        rows = {name: read_rows(p.weight, p.shape, p.flavour)[1] for name, p in checkpoint.projections.items() if p.flavour in BY_ROW}
        scales |= {f"{name}.weight": values[:, None] for name, values in rows.items()}
    try:
        check_plan(PlannedFile(folder, plan.architecture, metadata, tensors, scales))
    except UnsupportedError as error:
        if outtype == "auto":
            raise UnsupportedError(f"{error}; `bitnet run` would refuse the file, and --outtype TYPE writes it all the same") from None
        notes.append(f"`bitnet run` refuses the file: {str(error).removeprefix(f'{folder}: ')}")
    warnings = ([ASSUMED_MASTER] if checkpoint.assumed_master else []) + uniform_projections(checkpoint)
    return Conversion(source, target, checkpoint, metadata, tensors, plan, notes, warnings)


def _details(plan: Conversion) -> list[str]:
    """What the summary line says of a file that has been written."""
    kept = sum(p.flavour is None for p in plan.checkpoint.projections.values())
    counted = f"{len(plan.tensors)} tensors" + (f", {kept} projections kept in F16" if kept else "")
    return [plan.facts.family, f"flavour {plan.facts.flavour}", f"scale: {plan.facts.scale_rule}", counted]


def _assumptions(checkpoint: Checkpoint, activations: str, weight_type: TensorType) -> list[str]:
    """What the folder does not say, and the option that says otherwise.

    int8 is one where nothing but the weights speaks for it: models with norms of their own for it (BitNet's) say enough.
    """
    told = list(checkpoint.config.notes)
    assumed = checkpoint.flavour in (Flavour.DEQUANTISED, *BY_ROW) or checkpoint.assumed_master
    own_norms = any(target.endswith(("sub_norm", "_norm_in")) for target in checkpoint.order)
    by_group = checkpoint.flavour in (Flavour.GROUPS, Flavour.MASTER_GROUPS)
    if activations == "auto" and (assumed or by_group) and not own_norms:
        told.append(INT8_BY_GROUP if by_group else ASSUMED_INT8)
    if checkpoint.assumed_master:
        told.append(SCALE_OF_GROUP if checkpoint.group else SCALE_OF_ROW if checkpoint.flavour in BY_ROW else SCALE_OF_TENSOR)
    return told + (row_notes(weight_type) if checkpoint.flavour in BY_ROW else [])


def _stem(source: str) -> str:
    """Name of the file that a conversion writes by default: the folder's, or the repository's without its owner."""
    return Path(source).resolve().name or "model"


def _from_hub(name: str, options: HubOptions, report: Reporter, dry_run: bool, as_json: bool) -> Path | None:
    """The folder with the repository's files. None in a dry run that would have to download them first: said so, and nothing more."""
    repository = Repository(
        name,
        revision=options.revision,
        token=options.token,
        cache_dir=options.cache_dir,
        offline=options.offline,
        bars=report.on_terminal,
    )
    if repository.offline:
        return repository.offline_folder()
    try:
        listing = repository.listing()
    except UnreachableError as error:
        folder = repository.cached()
        if folder is None:
            raise
        report.note(f"{error}; using the files in the cache")
        return folder
    if listing.missing and dry_run:
        _show_download(repository, listing, as_json)
        return None
    if listing.missing:
        count = len(listing.missing)
        report.note(f"downloading {count} files, {listing.missing_bytes} bytes, from {repository.endpoint}/{name} at {listing.commit}")
    return repository.fetch(listing)


def _show_download(repository: Repository, listing: Listing, as_json: bool) -> None:
    """A dry run before the download: what would be fetched, and whether config.json (a few KB, fetched now) names a model that converts."""
    config = repository.config(listing)
    quantization = config.quantization
    rule = "none" if quantization is None else f"{quantization.linear_class}, {quantization.mode}"
    if as_json:
        files = [asdict(file) for file in listing.files]
        known = {"source": repository.name, "commit": listing.commit, "family": config.family.architecture, "quantization": rule}
        print_json(known | {"download": {"bytes": listing.missing_bytes, "files": files}, "written": False})
        return
    row("source", f"{repository.endpoint}/{repository.name} at {listing.commit}")
    row("family", f"{config.family.architecture}, {config.activation}, {config.layers} layers of width {config.hidden}")
    row("quantization", rule)
    row("download", f"{len(listing.missing)} files, {listing.missing_bytes} bytes, not in the cache yet")
    for file in listing.missing:
        row("", f"{file.name}  {'unknown size' if file.size is None else file.size}")
    row("then", "with these files in the cache, --dry-run says what the conversion itself does")


def _as_json(plan: Conversion, written: bool = True) -> dict[str, Any]:
    told = {"notes": plan.notes + plan.warnings, "written": written}
    return {"source": plan.source, "output": str(plan.target)} | asdict(plan.facts) | told


def _show(plan: Conversion, as_json: bool) -> None:
    """What a dry run says, on stdout."""
    if as_json:
        print_json(_as_json(plan, written=False))
        return
    row("source", plan.source)
    show_plan(plan.facts)
    there = "; is there already, --force would replace it" if plan.target.exists() else ""
    row("output", f"{plan.target}, {plan.facts.size} bytes{there}")
    for note in plan.notes + plan.warnings:
        row("note", note)
    row("written", "nothing: this is a dry run")


def show_plan(plan: ConversionPlan) -> None:
    """What is known of a checkpoint and its conversion, row by row."""
    rounding = f", {plan.activation_type} activations" if plan.activation_type != INT8 else ""
    row("family", f"{plan.family}, {plan.activation}{rounding}; as GGUF: {plan.architecture}")
    row("flavour", plan.flavour)
    row("scale", plan.scale_rule)
    row("parameters", str(plan.parameters))
    row("tensors", f"{sum(plan.tensors.values())}: " + ", ".join(f"{count} {kind}" for kind, count in plan.tensors.items()))
    for loss in plan.losses:
        shown = ", ".join(loss.tensors[:2]) + (f" and {len(loss.tensors) - 2} more" if len(loss.tensors) > 2 else "")
        row(
            "not exact" if loss.written else "left out",
            f"{shown}: " + (f"{loss.stored} to {loss.written}: " if loss.written else "") + loss.effect,
        )
    if not plan.losses:
        row("not exact", "nothing: every weight is kept to the bit")
