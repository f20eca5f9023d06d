"""Strings at which ways of cutting text into words differ: seeded, the same on every machine."""

import random

ATOMS = (
    *("the", " the", "The", " THE", "word", " Über", "straße", "ΑΒΓ αβγ", "иван", "МИР", "мир м", "ǅ", "ʰ", "ª", "ß", "ſ", "K", "ı"),
    *(
        "don't",
        "DON'T",
        "we'll",
        "WE'LL",
        "I've",
        "they'RE",
        "'s",
        "'S",
        " 'd",
        "’s",
        "'ſ",
        "x'm",
        "'vE ",
        "'stuff",
        "'TWAS",
        "'lLama",
        "it'sx",
        "'dé",
    ),
    *("1", "12", "123", "1234", "1234567", "0 1", "3.14", "1,000,000", "½", "²", "³⁴", "٣٤٥", "१२३४", "Ⅷ", "①②", "𝟘𝟙", "３４"),
    *(
        " ",
        "  ",
        "   ",
        " " * 7,
        " " * 20,
        " " * 40,
        "\t",
        "\t\t",
        "\n",
        "\n\n",
        "\n\n\n",
        "\r\n",
        "\r",
        " \n",
        "\n ",
        "  \r\n  ",
        "\v",
        "\f",
    ),
    *("\xa0", "\u3000", "\u2003", "\u200b", "\u2028", "\x85", "\u202f", "\u1680", "\ufeff", "\x00", "\x1b", "\x7f", "\x1c"),
    *("e\u0301", "é", "n\u0303", "\u0301", "ก็", "नमस्ते", "தமிழ்", "עִבְרִית", "اَلْعَرَبِيَّة", "한국어", "각", "が"),
    *(
        "你好",
        "世界",
        "。",
        "，",
        "！",
        "「」",
        "ｱｲｳ",
        "カタカナ",
        "ひらがな",
        "々",
        "〇",
        "𠀀",
        "㐀",
        "豈",
        "ㄅㄆ",
        "ㄱㄴ",
        "ไทย",
        "ລາວ",
        "ខ្មែរ",
    ),
    *("😀", "👍🏽", "👩‍👩‍👧", "🇩🇪", "❤️", "™", "©", "€", "$", "¥", "±", "×", "→", "√", "°", "\u200d", "\ufe0f"),
    *(
        "!",
        "?!",
        "...",
        "…",
        "--",
        "—",
        "/",
        "//",
        "\\",
        "(",
        ")",
        "[]",
        "{}",
        "<",
        ">",
        "=",
        "==",
        "+",
        "-",
        "*",
        "^",
        "`",
        "~",
        "|",
        "_",
        "@",
    ),
    *("#", "%", "&", ":", ";", '"', "«", "»", "“", "”", "‘", "’", "\u0e3f", "¿", "¡", "§", "¶", "،", "۔", "।"),
    *("snake_case", "camelCase", "HTTPServer", "x=1;", "a/b/c", "http://x.y/z?q=1", "<b>", "</b>", "&amp;", "f(x)", "İstanbul'un"),
)
CHARACTERS = (
    *((0x20, 0x7F), (0xA0, 0x180), (0x300, 0x36F), (0x370, 0x530), (0x590, 0x600), (0x600, 0x6FF), (0x900, 0x980), (0xE00, 0xE80)),
    *((0x1680, 0x1681), (0x1D00, 0x1DBF), (0x1E00, 0x2000), (0x2000, 0x2070), (0x2070, 0x2100), (0x2100, 0x2200), (0x2C00, 0x2E00)),
    *((0x3000, 0x3100), (0x3100, 0x3190), (0x4E00, 0x4E80), (0xA640, 0xA700), (0xAC00, 0xAC80), (0xFB00, 0xFB20), (0xFF00, 0xFFE0)),
    *((0x10400, 0x10450), (0x1D7CE, 0x1D800), (0x1F600, 0x1F650), (0x20000, 0x20020)),
)


def nasty_strings(seed: int, count: int = 500) -> list[str]:
    """`count` different strings of 1 to about 80 characters."""
    random_ = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        parts = []
        for _ in range(random_.randint(1, 10)):
            if random_.random() < 0.8:
                parts.append(random_.choice(ATOMS))
            else:
                parts.append(chr(random_.randrange(*random_.choice(CHARACTERS))))
            if random_.random() < 0.25:
                parts.append(" ")
        found["".join(parts)] = None
    return list(found)
