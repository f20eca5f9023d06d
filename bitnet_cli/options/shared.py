"""What options of several commands share."""

from enum import Enum
from typing import Annotated

import typer

from bitnet_cli.options import completion

CACHE_HELP = "KV cache. q8, q4, q3: about 8, 4, 3 bits a number, less memory and quicker at long contexts, less exact; f32: every bit."


ENCODING_HELP = "Encoding of text from a file or pipe, such as latin-1 or utf-16-le. Default: UTF-8, or what a byte order mark says."
MMAP_HELP = "Read the file into memory first: for files on a network share, or that may change meanwhile."
QUERY_HELP = "Queries of attention; q4: rounded to 4 bits after RoPE, as BitNet a4.8 does beside a q4 or q3 cache. Not quicker."
ACTIVATIONS_HELP = (
    "Activations of a ReLU² model: a8 (8 bits), a4 (4 bits, half of them zero before o: BitNet a4.8) or fp4 (4-bit floats). auto: as "
    "trained; anything else costs quality."
)


class Activations(str, Enum):
    """activations.WANTED."""

    auto = "auto"
    a8 = "a8"
    a4 = "a4"
    fp4 = "fp4"


class SchemeType(str, Enum):
    """activations.SCHEMES, and auto."""

    auto = "auto"
    int8 = "int8"
    float = "float"
    a4_8 = "a4.8"
    a4_8_fp4 = "a4.8-fp4"
    v2_a8 = "v2-a8"
    v2_a4 = "v2-a4"


class EmbeddingType(str, Enum):
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"
    q6_k = "q6_k"
    q4_0 = "q4_0"


class CacheType(str, Enum):
    f32 = "f32"
    f16 = "f16"
    q8 = "q8"
    q4 = "q4"
    q3 = "q3"


class QueryType(str, Enum):
    """engine.QUERY_TYPES."""

    f32 = "f32"
    q4 = "q4"


class OutType(str, Enum):
    """packing.OUTTYPES, and auto."""

    auto = "auto"
    i2_s = "i2_s"
    iq2_bn = "iq2_bn"
    tq1_0 = "tq1_0"
    tq2_0 = "tq2_0"
    q2_0 = "q2_0"
    pq2_0 = "pq2_0"
    ptq1_0 = "ptq1_0"
    q1_0 = "q1_0"
    f16 = "f16"


class QuantizedType(str, Enum):
    i2_s = "i2_s"
    tq1_0 = "tq1_0"
    tq2_0 = "tq2_0"
    q2_0 = "q2_0"
    pq2_0 = "pq2_0"
    ptq1_0 = "ptq1_0"
    q1_0 = "q1_0"
    iq2_bn = "iq2_bn"
    f16 = "f16"


MODEL_HELP = (
    "Name (see `bitnet list`), hub id owner/name, or path: a GGUF file (any of a split one) or ./FOLDER. Without: the embedded model."
)
ModelArgument = Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, autocompletion=completion.model)]
ModelOption = Annotated[
    str | None, typer.Option("-m", "--model", metavar="MODEL", help="The same as MODEL.", autocompletion=completion.model)
]
