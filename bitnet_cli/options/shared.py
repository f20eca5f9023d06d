"""What options of several commands share."""

from enum import Enum

CACHE_HELP = "KV cache. q8, q4, q3: about 8, 4, 3 bits a number, less memory and quicker at long contexts, less exact; f32: every bit."


class EmbeddingType(str, Enum):
    f16 = "f16"
    q8_0 = "q8_0"
    q6_k = "q6_k"
    q4_0 = "q4_0"


class CacheType(str, Enum):
    f32 = "f32"
    f16 = "f16"
    q8 = "q8"
    q4 = "q4"
    q3 = "q3"


class QuantizedType(str, Enum):
    i2_s = "i2_s"
    tq1_0 = "tq1_0"
    tq2_0 = "tq2_0"
    q2_0 = "q2_0"
    f16 = "f16"
