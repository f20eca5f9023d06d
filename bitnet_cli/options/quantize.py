"""Options of `bitnet quantize`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from bitnet_cli.options import completion
from bitnet_cli.options.shared import EmbeddingType, QuantizedType


class I2SLayout(str, Enum):
    auto = "auto"
    x86 = "x86"
    arm = "arm"


def quantize(
    source: Annotated[
        str,
        typer.Argument(metavar="IN", help="GGUF file with float or ternary weights, or a model's name.", autocompletion=completion.model),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="GGUF file to write.")],
    kind: Annotated[
        QuantizedType,
        typer.Argument(
            metavar="TYPE",
            help="Type of the ternary weights. llama.cpp reads tq1_0, tq2_0, q2_0, q1_0, f16; PrismML's fork pq2_0, ptq1_0; ik_llama.cpp "
            "iq2_bn. f16: weight * scale.",
        ),
    ] = QuantizedType.i2_s,
    embedding_type: Annotated[EmbeddingType | None, typer.Option("--embedding-type", help="Default: as in the input.")] = None,
    i2s_layout: Annotated[
        I2SLayout, typer.Option("--i2s-layout", help="Order of I2_S in IN. arm: as bitnet.cpp packs on ARM; auto: what it looks like.")
    ] = I2SLayout.auto,
    ternarise: Annotated[
        bool, typer.Option("--ternarise", "--ternarize", help="Round float weights even if the architecture is not a BitNet one.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Change the type of a GGUF file's ternary weights, and of its embedding."""
    from bitnet_cli.commands import quantize as command

    embedding = embedding_type.value if embedding_type else None
    command.quantize(
        source,
        output,
        kind.value,
        embedding_type=embedding,
        i2_s_layout=i2s_layout.value,
        ternarise=ternarise,
        force=force,
        quiet=quiet,
    )
