"""Options of `bitnet convert`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from bitnet_cli.options.shared import EmbeddingType, OutType, SchemeType

OUTPUT_HELP = "GGUF file to write. Default: NAME.gguf in models/, where there is such a folder, else in your model folder (BITNET_MODELS)."


class Group(str, Enum):
    """Weights that share a scale."""

    g64 = "64"
    g128 = "128"
    g256 = "256"


class ScaleOf(str, Enum):
    tensor = "tensor"
    row = "row"


Trained = Annotated[
    SchemeType,
    typer.Option(
        "--activations",
        help="What the model was trained to multiply by: int8 (BitNet b1.58), float (TriLM), a4.8 ... auto: as config.json says, or "
        "by the weights.",
    ),
]


def convert(
    source: Annotated[str, typer.Argument(help="Hugging Face folder (config.json, *.safetensors, tokenizer files), or hub id owner/name.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", "--outfile", help=OUTPUT_HELP, show_default=False)] = None,
    outtype: Annotated[
        OutType,
        typer.Option(
            "--outtype",
            help="Ternary weights. auto: i2_s, or what holds the scales. llama.cpp: tq1_0, tq2_0, q2_0; PrismML's: pq2_0, ptq1_0; "
            "ik_llama.cpp: iq2_bn; f16: floats.",
        ),
    ] = OutType.auto,
    embedding_type: Annotated[EmbeddingType, typer.Option("--embedding-type", help="Type of the embedding and head.")] = EmbeddingType.f16,
    ternarise: Annotated[
        bool, typer.Option("--ternarise", "--ternarize", help="Round float weights that nothing marks as trained for ternary values.")
    ] = False,
    ternarise_by: Annotated[
        ScaleOf | None,
        typer.Option(
            "--ternarise-by", "--ternarize-by", help="The same, and what one scale is taken of: tensor (BitNet) or row (axolotl)."
        ),
    ] = None,
    group: Annotated[
        Group | None, typer.Option("--group", help="The same, with one scale for each so many neighbours of a row: 128 as Bonsai has it.")
    ] = None,
    activations: Trained = SchemeType.auto,
    revision: Annotated[str | None, typer.Option("--revision", help="Hub: branch, tag or commit. Default: main.")] = None,
    token: Annotated[str | None, typer.Option("--token", help="Hub: access token; HF_TOKEN keeps it out of process lists.")] = None,
    cache_dir: Annotated[Path | None, typer.Option("--cache-dir", help="Hub: folder of the cache. Default: HF_HUB_CACHE.")] = None,
    offline: Annotated[bool, typer.Option("--offline", "--local-files-only", help="Hub: use the cache only.")] = False,
    sha256: Annotated[
        list[str] | None,
        typer.Option("--sha256", metavar="[NAME=]DIGITS", help="SHA-256 that the weights, or the file NAME, must have; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written and what would be lost; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Convert a Hugging Face folder or repository to one packed GGUF file."""
    from bitnet_cli.commands import convert as command

    command.convert(
        source,
        output,
        outtype=outtype.value,
        embedding_type=embedding_type.value,
        ternarise=ternarise,
        ternarise_by=ternarise_by.value if ternarise_by else None,
        group=int(group.value) if group else 0,
        activations=activations.value,
        hub=command.HubOptions(revision, token, cache_dir, offline, sha256 or ()),
        force=force,
        dry_run=dry_run,
        as_json=as_json,
        quiet=quiet,
    )
