"""`bitnet inspect`: what a GGUF file (or a checkpoint folder) holds, and which commands work on it. The report goes to stdout.

A file of an architecture or with tensors that are not supported is reported as far as it can be read: that is what the command is for.
Only a damaged file is an error.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitnet_cli.activations import SCHEMES
from bitnet_cli.checkpoint.gguf_source import GGUFSource
from bitnet_cli.commands.convert import planned, show_plan
from bitnet_cli.commands.loading import find_model
from bitnet_cli.commands.reporting import WIDTH, Reporter, print_json, put, row
from bitnet_cli.errors import BadFileError, BitnetError, printable
from bitnet_cli.gguf_file.reader import GGUFFile, open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.model.checks import Verdict, why_not
from bitnet_cli.model.config import ACTIVATION_TOP_K, ACTIVATION_TYPE
from bitnet_cli.model.weights import head_note
from bitnet_cli.tensors.contents import PARTS, Checked, TensorRow, check, sample_zeros, tensor_rows
from bitnet_cli.tensors.uniform import uniform_projections
from bitnet_cli.ternary import i2_s_order
from bitnet_cli.text.chat.choice import KEY, chat_facts, choose
from bitnet_cli.text.from_gguf import tokenizer_from_metadata
from bitnet_cli.text.vocabulary import PREFIX

SPECIALS = ("bos", "eos", "eot", "eom", "unknown", "padding")
KEY_WIDTH = 47  # columns of a metadata key; the longest of the known ones has 46


def inspect(model: str | None, *, full: bool, tensors: bool, as_json: bool, quiet: bool) -> None:
    """Report on a file; None: the embedded model. `full`: read all of it, and end with BadFileError where a number is not usable."""
    if model is not None and (Path(model) / "config.json").is_file():
        _inspect_folder(Path(model), full, tensors, as_json, quiet)
        return
    with open_gguf(find_model(model), unread=True) as file:
        checked = None
        if full:
            with Reporter(quiet).progress("checking") as progress:
                checked = check(file, progress)
        facts = describe(file, checked)
        if as_json:
            print_json(facts)
        else:
            _show(facts, tensors)
    if checked is not None and checked.problems:
        more = len(checked.problems) - 1
        field, _, reason = checked.problems[0].partition(": ")
        raise BadFileError(file.path, field, reason + (f", and {more} more problems" if more else ""))


def describe(file: GGUFFile, checked: Checked | None = None) -> dict[str, Any]:
    """All that is known of an open file, in plain values with stable keys: the object that `--json` prints."""
    rows = tensor_rows(file)
    zeros = checked.zeros if checked else sample_zeros(file)
    evidence = i2_s_order.judge_file(file)
    parts = {part: _sum(r for r in rows if r.part == part) for part in PARTS}
    kinds = sorted({r.type for r in rows}, key=lambda kind: -sum(r.nbytes for r in rows if r.type == kind))
    everything = _sum(rows)
    return {
        "path": str(file.path),
        "format": "GGUF",
        "version": file.version,
        "bytes": file.size,
        "files": [{"path": str(place.path), "bytes": place.size} for place in file.files],
        "alignment": file.alignment,
        "trailing_bytes": file.trailing,
        "architecture": _text(file, "general.architecture"),
        "name": _text(file, "general.name"),
        "activations": _activations(file),
        "weights": everything["weights"],
        "parts": parts,
        "types": {kind: _sum(r for r in rows if r.type == kind) for kind in kinds},
        "bits_per_weight": {"ternary": _bits(parts["ternary"]), "all": _bits(everything)},
        "zeros": {"share": zeros.share, "weights": zeros.weights, "seen": zeros.seen, "exact": zeros.seen == zeros.weights},
        "i2_s_order": evidence.order,
        "head_note": head_note(file),
        "tokenizer": _tokenizer(file),
        "chat_template": _template(file),
        "commands": _commands(file, evidence, checked is not None),
        "check": _check(file, checked),
        "metadata": {key: _plain(value) for key, value in file.metadata.items()},
        "tensors": [_tensor(file, r, checked) for r in rows],
    }


def _check(file: GGUFFile, checked: Checked | None) -> dict[str, Any] | None:
    """`warnings`, where there are any: what can be used, and is broken all the same."""
    warnings = uniform_projections(file) if checked else []
    known = {"problems": checked.problems, "unchecked": checked.unchecked} if checked else None
    return known | {"warnings": warnings} if known and warnings else known


def _sum(rows: Iterable[TensorRow]) -> dict[str, int]:
    chosen = list(rows)
    return {"tensors": len(chosen), "weights": sum(r.weights for r in chosen), "bytes": sum(r.nbytes for r in chosen)}


def _bits(part: dict[str, int]) -> float | None:
    return 8 * part["bytes"] / part["weights"] if part["weights"] else None


def _tensor(file: GGUFFile, r: TensorRow, checked: Checked | None) -> dict[str, Any]:
    """`file`: which of `files` it is in, `offset`: there; `sha256`: of the tensor's bytes, null without --check, which reads them."""
    place = file.place_of(r.offset)
    known = {"name": r.name, "type": r.type, "shape": list(r.shape), "file": file.files.index(place), "offset": r.offset - place.start}
    known |= {"bytes": r.nbytes, "part": r.part}
    return known | {"sha256": checked.sha256[r.name] if checked else None}


def _plain(value: Any) -> Any:
    """Scalars and strings as they are; of an array its length, and its items where they are few."""
    if not isinstance(value, (list, array)):
        return value
    return {"count": len(value), "items": list(value) if len(value) <= 16 else None}


def _text(file: GGUFFile, key: str) -> str | None:
    value = file.metadata.get(key)
    return value if isinstance(value, str) else None


def _activations(file: GGUFFile) -> dict[str, Any] | None:
    """What the file says of the inputs of projections; None where it says nothing (int8, or float where tensors have several scales)."""
    arch = _text(file, "general.architecture")
    name = _text(file, f"{arch}.{ACTIVATION_TYPE}")
    return None if name is None else {"scheme": name, "known": name in SCHEMES, "top_k": file.metadata.get(f"{arch}.{ACTIVATION_TOP_K}")}


def _tokenizer(file: GGUFFile) -> dict[str, Any] | None:
    """None where the file has none. `problem`: why the vocabulary cannot be used, if it cannot."""
    if not any(key.startswith(PREFIX) for key in file.metadata):
        return None
    tokens, merges = file.metadata.get(PREFIX + "tokens"), file.metadata.get(PREFIX + "merges")
    named: dict[str, dict[str, Any]] = {}
    for name in SPECIALS:
        number = file.metadata.get(f"{PREFIX}{name}_token_id")
        if isinstance(number, int) and isinstance(tokens, list) and 0 <= number < len(tokens):
            named[name] = {"id": number, "text": tokens[number]}
    known: dict[str, Any] = {
        "kind": _text(file, PREFIX + "model"),
        "pre": _text(file, PREFIX + "pre"),
        "tokens": len(tokens) if isinstance(tokens, list) else 0,
        "merges": len(merges) if isinstance(merges, list) else 0,
        "special": named,
    }
    embedding = file.tensors.get("token_embd.weight")
    try:
        tokenizer = tokenizer_from_metadata(file.metadata, str(file.path), embedding.shape[0] if embedding is not None else None)
    except BitnetError as error:
        return known | {"stops_at": [], "problem": str(error).removeprefix(f"{file.path}: "), "notes": []}
    return known | {"stops_at": sorted(tokenizer.eos_ids), "problem": None, "notes": tokenizer.notes}


def _template(file: GGUFFile) -> dict[str, Any]:
    """The chat format that `bitnet run -cnv` takes and why; `characters`: of the file's own template, null where it has none."""
    text, choice = _text(file, KEY), choose(chat_facts(file.metadata, file.path))
    more = [key.removeprefix(KEY + ".") for key in file.metadata if key.startswith(KEY + ".")]
    known = {"name": choice.template.name, "reason": choice.reason, "trained": choice.trained}
    return known | {"characters": None if text is None else len(text), "also": more}


def _commands(file: GGUFFile, evidence: i2_s_order.Evidence, full: bool) -> dict[str, dict[str, Any]]:
    """Which commands work on the file; `reason` says why not, `sampled` that only a sample of the weights was looked at."""
    verdicts = dict.fromkeys(("run", "perplexity"), why_not(file, evidence, full=full))
    verdicts["embed"] = why_not(file, evidence, embeds=True, full=full)
    verdicts["quantize"] = _why_not_quantized(file, full)
    return {name: {"works": v.reason is None, "reason": v.reason, "sampled": v.sampled} for name, v in verdicts.items()}


def _why_not_quantized(file: GGUFFile, full: bool) -> Verdict:
    """Whether `bitnet quantize` works with its default types. full: make every tensor, which finds values that have no place there."""
    try:
        source = GGUFSource(file.path)
        tensors = source.tensors(TensorType.I2_S, None)
        for tensor in tensors if full else ():
            tensor.produce()
    except BitnetError as error:
        return Verdict(str(error).removeprefix(f"{file.path}: "))
    return Verdict(None, sampled=not full)


def _show(facts: dict[str, Any], tensors: bool) -> None:
    row("file", facts["path"])
    trailing = f", {facts['trailing_bytes']} bytes after the last tensor" if facts["trailing_bytes"] else ""
    if len(facts["files"]) > 1:
        row("files", f"{len(facts['files'])}, of {', '.join(str(part['bytes']) for part in facts['files'])} bytes")
    row("format", f"GGUF {facts['version']}, {facts['bytes']} bytes, alignment {facts['alignment']}{trailing}")
    row("model", f"{facts['name'] or 'no name'}, architecture {facts['architecture'] or 'not named'}, {facts['weights']} weights")
    _show_bytes(facts)
    _show_numbers(facts)
    _show_tokenizer(facts)
    for name, verdict in facts["commands"].items():
        row(name, _works(verdict))
    if facts["check"] is not None:
        _show_check(facts)
    put("\nmetadata")
    for key, value in facts["metadata"].items():
        put(f"  {_fit(key, KEY_WIDTH)}  {_fit(_shown(value), WIDTH - KEY_WIDTH - 4)}".rstrip())
    if tensors:
        _show_tensors((t["name"], t["type"], t["shape"], t["bytes"]) for t in facts["tensors"])


def _works(verdict: dict[str, Any]) -> str:
    if not verdict["works"]:
        return f"does not work: {verdict['reason']}"
    return "works, as far as sampled; --check reads all" if verdict["sampled"] else "works"


def _show_bytes(facts: dict[str, Any]) -> None:
    put(f"\n{'part':<24}{'tensors':>8}{'weights':>16}{'bytes':>16}{'bits/weight':>14}")
    for title, group in (("", "parts"), ("type ", "types")):
        for name, part in facts[group].items():
            if part["tensors"]:
                bits = "" if _bits(part) is None else f"{_bits(part):.2f}"
                label = title + name.replace("_", ", ") if group == "parts" else title + name
                put(f"  {_fit(label, 21)} {part['tensors']:>8}{part['weights']:>16}{part['bytes']:>16}{bits:>14}".rstrip())
    total = facts["bits_per_weight"]["all"]
    if total is not None:
        put(f"  {'all':<22}{len(facts['tensors']):>8}{facts['weights']:>16}{sum(t['bytes'] for t in facts['tensors']):>16}{total:>14.2f}")
    put("")


def _show_numbers(facts: dict[str, Any]) -> None:
    zeros, activations = facts["zeros"], facts["activations"]
    if activations is not None:
        name, share = activations["scheme"], activations["top_k"]
        kept = f"; {100 * share:g} % kept before o" if isinstance(share, float) else ""
        row("activations", f"{name}: {SCHEMES.get(name, 'not supported')}{kept}")
    if zeros["share"] is not None:
        how = "all of them counted" if zeros["exact"] else f"a sample of {100 * zeros['seen'] / zeros['weights']:.1f} %; --check counts all"
        row("zeros", f"{100 * zeros['share']:.1f} % of the ternary weights ({how})")
    if facts["head_note"] is not None:
        row("head", facts["head_note"])
    if "I2_S" in facts["types"]:
        row("I2_S order", f"{facts['i2_s_order'] or 'not told by the weights; read as 128/32'}")


def _show_tokenizer(facts: dict[str, Any]) -> None:
    t, template = facts["tokenizer"], facts["chat_template"]
    if t is None:
        row("tokenizer", "none in the file")
    else:
        pre = f", pre {t['pre']}" if t["pre"] else ""
        merges = f", {t['merges']} merges" if t["merges"] else ""
        row("tokenizer", f"{t['kind']}{pre}, {t['tokens']} tokens{merges}" + (f"; not usable: {t['problem']}" if t["problem"] else ""))
        if t["special"]:
            row("", ", ".join(f"{name} {s['id']} {s['text'][:40]!r}" for name, s in t["special"].items()))
        if t["stops_at"]:
            row("", "generation stops at " + ", ".join(map(str, t["stops_at"])))
        for note in t["notes"]:
            row("", f"note: {note}")
    row("chat format", f"{template['name']}: {template['reason']}")
    if template["characters"] is not None:
        also = f"; also: {', '.join(template['also'])}" if template["also"] else ""
        row("", f"the file's own template has {template['characters']} characters{also}")


def _show_check(facts: dict[str, Any]) -> None:
    problems, unchecked = facts["check"]["problems"], facts["check"]["unchecked"]
    row("check", f"{len(problems)} problems" if problems else "every code and number is usable")
    for problem in problems[:20]:
        row("", problem)
    if len(problems) > 20:
        row("", f"and {len(problems) - 20} more (--json lists all)")
    for warning in facts["check"].get("warnings", []):
        row("warning", warning)
    if unchecked:
        row("", f"{len(unchecked)} tensors of types that are not read were not looked into")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"array of {value['count']}" if value["items"] is None else " ".join(map(str, value["items"]))
    return repr(value)[1:-1] if isinstance(value, str) else str(value)


def _fit(text: str, width: int) -> str:
    """Exactly `width` columns, cut with dots."""
    text = printable(text)
    return f"{text:<{width}}" if len(text) <= width else text[: width - 3] + "..."


def _inspect_folder(folder: Path, full: bool, tensors: bool, as_json: bool, quiet: bool) -> None:
    """A checkpoint folder: what `convert --dry-run` says of it with default types, without an output. full: read all weights too."""
    plan = planned(folder, str(folder), folder / "NAME.gguf")
    if full:
        with Reporter(quiet).progress("checking") as progress:
            plan.make_all(progress)
    checkpoint = plan.checkpoint
    stored = [*checkpoint.dense.values(), *checkpoint.norms.values()]
    stored += [t for p in checkpoint.projections.values() for t in (p.weight, p.scale) if t is not None]
    stored.sort(key=lambda t: (t.path.name, t.offset))
    if as_json:
        rows = [(t.name, t.dtype, list(t.shape), t.path.name, t.offset, t.nbytes) for t in stored]
        listed = [dict(zip(("name", "type", "shape", "file", "offset", "bytes"), r, strict=True)) for r in rows]
        known = {"path": str(folder), "format": "safetensors", "plan": asdict(plan.facts), "notes": plan.notes}
        print_json(known | {"warnings": plan.warnings, "sampled": not full, "tensors": listed})
        return
    row("folder", str(folder))
    row("format", f"safetensors, {len(stored)} tensors, {sum(t.nbytes for t in stored)} bytes")
    show_plan(plan.facts)
    works = "works; needs --ternarise" if checkpoint.assumed_master else "works"
    row("convert", works if full else f"{works}, as far as sampled; --check reads all")
    for warning in plan.warnings:
        row("warning", warning)
    if tensors:
        _show_tensors((t.name, t.dtype, t.shape, t.nbytes) for t in stored)


def _show_tensors(tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> None:
    put(f"\n{'tensors':<40}{'type':>7}{'shape':>18}{'bytes':>15}")
    for name, kind, shape, size in tensors:
        put(f"  {_fit(name, 37)} {kind:>7}{' x '.join(map(str, shape)):>18}{size:>15}")
