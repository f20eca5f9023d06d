"""How byte-level BPE cuts text into words before it merges bytes: `tokenizer.ggml.pre` -> patterns and flags.

Merges never cross the border of a word, so a wrong pattern gives ids that the model has not seen in training, without any error.

The names, and which of them are one, are llama.cpp's (src/llama-vocab.cpp, `llama_vocab::impl::load`). The expressions are those of the
models' own `tokenizer.json` where it is known, because the model was trained with it; `llama.cpp` as the source says that it is not, and
that llama.cpp's expression stands here. Where the two differ, and on how many strings, is in docs/log.md#ids-beside-llama-cpp.

Expressions are in Oniguruma's syntax (Ruby's), which Hugging Face's `tokenizers` uses: \\p{L} letters, \\p{N} numbers, (?i:...) without
regard to case, && the intersection of two classes. They are applied one after the other, each to the pieces that the one before left;
what matches is a word, and so is what lies between two matches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.text.vocabulary import PREFIX, shown

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
LLAMA3 = _CL100K % r"\p{N}{1,3}"
QWEN2 = _CL100K % r"\p{N}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT, DIGITS = r"\p{N}", r"\p{N}+"
PUNCTUATION = r"[\p{P}$+<=>^`|~]"  # Unicode's punctuation and ASCII's
_THREE = "[0-9][0-9][0-9]"

# Words of one case, or of small letters after large ones: GPT-4o, Mistral's Tekken, Kimi.
_FRONT, _LARGE, _SMALL = r"[^\r\n\p{L}\p{N}]?", r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = f"{_FRONT}[{_LARGE}]*[{_SMALL}]+%s|{_FRONT}[{_LARGE}]+[{_SMALL}]*%s"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
GPT4O = _CASED % (_SHORT + "?", _SHORT + "?") + r"|\p{N}{1,3}|" + _SYMBOLS
_TEKKEN = _CASED % ("", "") + r"|\p{N}|" + _SYMBOLS
_YOUTU = _CASED % (_SHORT + "?", _SHORT + "?") + r"|\p{N}|" + _SYMBOLS
_NO_HAN = _CASED.replace("\\p{M}]", "\\p{M}&&[^\\p{Han}]]")
_KIMI = r"[\p{Han}]+|" + _NO_HAN % (_SHORT + "?", _SHORT + "?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES

# DeepSeek: punctuation is no part of a word, marks are.
_CHINESE = "[一-龥ࠀ-一가-퟿]+"
_KANA = "[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK3 = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|""" + _SPACES
_SPARK = _DEEPSEEK3.replace(r"+[\r\n]*|\s*[\r\n]+|", r"+|[\r\n]|")
# Letters of scripts that have two cases, and full-width punctuation.
_CASED_SCRIPTS = (
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼ"
    "ℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_ASIAN_MARKS = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"
_AFMOE_SCRIPTS = "[一-鿿㐀-䶿豈-\ufaff぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"
_YOUTU_SCRIPTS = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"

_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_LINES = r"[^\n]+|[\n]+"
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_SEED = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|" + _SPACES
_EXAONE = _SHORT + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
_JAIS2_SPACES = r"\s*[\r\n]+|" + "".join(rf"\s{{{n}}}(?!\S)|" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"\s{1,2}(?!\S)|\s{1}"


class PreTokenizer(NamedTuple):
    patterns: tuple[str, ...]
    byte_patterns: tuple[str, ...] = ()  # after the others, on the text as GPT-2's byte alphabet writes it
    ignore_merges: bool = False  # a word that is in the vocabulary is that token, whatever the merges would make of it
    add_bos: bool = False  # where the file does not say
    nfc: bool = False  # composes characters first (Unicode NFC)
    source: str = "tokenizer.json"


_LLAMACPP = "llama.cpp"
_LLAMA3_FAMILY = PreTokenizer((LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2_FAMILY = PreTokenizer((QWEN2,))
_GPT2_FAMILY = PreTokenizer((GPT2,))
_STARCODER_FAMILY = PreTokenizer((DIGIT, GPT2))
_DEEPSEEK3_FAMILY = PreTokenizer((r"\p{N}{1,3}", _KANA, _DEEPSEEK3))
_BLOOM_FAMILY = PreTokenizer((_BLOOM,))
_BAILING_FAMILY = PreTokenizer((_BAILING,))
_GLM4_FAMILY = PreTokenizer((LLAMA3,), ignore_merges=True)
_GPT4O_FAMILY = PreTokenizer((GPT4O,))
_COHERE2_FAMILY = PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O))


def _named(pre: PreTokenizer, *names: str) -> dict[str, PreTokenizer]:
    return dict.fromkeys(names, pre)


# The first name of an entry is the one that `convert` writes for its expressions.
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **_named(_LLAMA3_FAMILY, "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon_e", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    **_named(_LLAMA3_FAMILY, "jina-v5-nano"),
    **_named(PreTokenizer((QWEN2,), nfc=True), "qwen2"),
    **_named(_STARCODER_FAMILY, "smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"),
    **_named(_GPT2_FAMILY, "gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0", "mellum"),
    **_named(_GPT2_FAMILY, "jina-v1-en", "jina-v2-code", "roberta-bpe", "jais", "trillion", "granite-docling", "exaone4", "modern-bert"),
    **_named(PreTokenizer((GPT2,), nfc=True), "olmo", "mpt"),  # GPT-NeoX's vocabulary
    **_named(PreTokenizer((DIGIT, GPT2), nfc=True), "command-r"),
    **_named(_QWEN2_FAMILY, "stablelm2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "hunyuan", "solar-open", "grok-2"),
    **_named(PreTokenizer((LLAMA3,)), "dbrx", "smaug-bpe", "chatglm-bpe"),
    **_named(_GLM4_FAMILY, "glm4", "glm5"),
    "qwen35": PreTokenizer((QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"),), nfc=True),
    "falcon": PreTokenizer((PUNCTUATION + "+", GPT2), byte_patterns=(DIGITS, _THREE)),
    "deepseek-llm": PreTokenizer((r"[\r\n]", _CASED_SCRIPTS, _ASIAN_MARKS, r"\s+$", _CHINESE, DIGIT)),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE, DIGIT)),
    **_named(_DEEPSEEK3_FAMILY, "deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
    "spark2_5": PreTokenizer((r"\p{N}{1,3}", _KANA, _SPARK, DIGIT), source=_LLAMACPP),
    "youtu": PreTokenizer((_YOUTU_SCRIPTS, _YOUTU), ignore_merges=True),
    **_named(_GPT4O_FAMILY, "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
    "granite-embed-multi-97m": PreTokenizer((GPT4O,), ignore_merges=True),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    **_named(_COHERE2_FAMILY, "tiny_aya", "cohere2moe"),
    "kimi-k2": PreTokenizer((_KIMI,)),
    **_named(_BLOOM_FAMILY, "bloom", "poro-chat", "gpt3-finnish"),
    "viking": PreTokenizer((_BLOOM, DIGIT)),
    **_named(_BAILING_FAMILY, "bailingmoe", "bailingmoe2", "llada-moe"),
    "seed-coder": PreTokenizer((_SEED,)),
    "superbpe": PreTokenizer((DIGITS, r"(?=(\d{3})+(?!\d))"), source=_LLAMACPP),
    "ufakzeka": PreTokenizer((QWEN2.removeprefix(_SHORT + "|"),), source=_LLAMACPP),
    "afmoe": PreTokenizer((r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", _AFMOE_SCRIPTS, _DEEPSEEK3), source=_LLAMACPP),
    "laguna": PreTokenizer((_LINES, QWEN2), source=_LLAMACPP),
    "exaone-moe": PreTokenizer((_EXAONE,)),
    "jais-2": PreTokenizer((_CL100K.replace(_SPACES, _JAIS2_SPACES) % r"\p{N}{1,3}",)),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _CL100K % DIGITS), ignore_merges=True),
    "chameleon": PreTokenizer(
        (
            *("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", DIGIT),
            *(r"[\p{P}!-/:-@\[-`{-~]", GPT2),
        ),
        add_bos=True,
        source=_LLAMACPP,
    ),
    "default": PreTokenizer((r"[\p{P}$+<=>^~|]+", GPT2, DIGITS, _THREE), source=_LLAMACPP),
}
# What llama.cpp calls a pre-tokenizer as well, and is not byte-level: spaces are ▁ there, or words whole.
NOT_BYTE_LEVEL = ("gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace")
LLAMA3_VOCABULARY = 128_256

# Keys of ours for what llama.cpp has no name for. `pre` is then `tokenizer.json`, at which llama.cpp stops, as it should.
OWN_PRE = "tokenizer.json"
STEPS = "bitnet.tokenizer.pre_tokenizer"  # JSON text: the value of `pre_tokenizer` in tokenizer.json
NORMALIZER = "bitnet.tokenizer.normalizer"  # JSON text: the value of `normalizer`; it comes before what a name implies
MAX_STEPS = 16
IGNORE_MERGES = "bitnet.tokenizer.ignore_merges"  # true or false, before what a name implies


def pre_tokenizer(metadata: Mapping[str, object], source: str, vocab_size: int) -> tuple[PreTokenizer, str | None]:
    """The entry that the file names, and what the user should know about the choice.

    A file without a name has Llama 3's if its vocabulary is of that size (Microsoft's BitNet-2B-4T), else llama.cpp's default.
    One that names OWN_PRE has no patterns here: its steps are under STEPS (words.py).
    """
    key = PREFIX + "pre"
    note = None
    if key not in metadata and vocab_size != LLAMA3_VOCABULARY:
        note = f"{key} is missing: text is cut into words by llama.cpp's default, which may not be what the model was trained with"
    name = metadata.get(key, "llama-bpe" if vocab_size == LLAMA3_VOCABULARY else "default")
    if not isinstance(name, str):
        raise BadFileError(source, key, "is not a string")
    if name == OWN_PRE:
        return PreTokenizer(()), None
    if name in NOT_BYTE_LEVEL:
        raise UnsupportedError(f"{source}: {key}: {shown(name)} is not supported: it does not work on bytes")
    if name not in PRE_TOKENIZERS:
        raise UnsupportedError(f"{source}: {key}: {shown(name)} is not supported (supported: {', '.join(PRE_TOKENIZERS)})")
    return PRE_TOKENIZERS[name], note


def flat(value: Any, key: str) -> list[dict[str, Any]] | None:
    """A pipeline of tokenizer.json as its steps in order: one step, or a Sequence of them under `key`, within each other too.
    None: not of that form."""
    if value is None:
        return []
    if not isinstance(value, dict):
        return None
    if value.get("type") != "Sequence":
        return [value]
    inner, steps = value.get(key), list[dict[str, Any]]()
    if not isinstance(inner, list) or len(inner) > MAX_STEPS:
        return None
    for item in inner:
        found = flat(item, key) if isinstance(item, dict) else None
        if found is None or len(steps) > MAX_STEPS:
            return None
        steps += found
    return steps
