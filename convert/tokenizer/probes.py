"""The texts that a converted tokenizer has to split as the original does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

_ZWJ, _SKIN = "\u200d", "\U0001f3fd"

HARD: tuple[str, ...] = (
    "",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    # numbers are grouped by one, two, three or not at all
    "1 12 123 1234 12345 123456 1234567 12345678 123456789",
    "3.14159 1,234,567.89 -42 +7 1e-9 0x1F 50% $19.99 №5 ½ ² ①",
    "2024-02-29T23:59:60Z v1.2.3-rc4 192.168.0.1:8080",
    "٠١٢٣٤٥٦٧٨٩ १२३४५ 一二三四 １２３４５６",
    # contractions
    "I'm you're he's we'll they've I'd don't",
    "I'M YOU'RE HE'S WE'LL THEY'VE I'D DON'T It'S",
    "I’m you’re he’s rock 'n' roll 'tis ''quoted'' O'Neill's",
    # case and joined words
    "CamelCase camelCase snake_case kebab-case SCREAMING_CASE HTTPServer2Go iPhone15Pro",
    "ÉCOLE École straße STRASSE ΣΊΣΥΦΟΣ Σίσυφος Привет МИР",
    # white space
    " ",
    "  ",
    "   leading three",
    "trailing three   ",
    " leading and trailing ",
    "one  two   three    four     five      six",
    "\n",
    "\n\n",
    "a\nb\n\nc\n\n\nd\n\n\n\n",
    "a\r\nb\r\n\r\nc\rd",
    "\t",
    "\ttab\t\ttabs\t\t\tand \t mixed\t ",
    " \n  \n   \n x \n\n \n",
    "no-break\u00a0space em\u2003space thin\u2009space ideographic\u3000space zero\u200bwidth",
    "line\u2028separator paragraph\u2029separator next\u0085line",
    # punctuation
    "!?... ?!?! ---- ==== **** #### ((())) [[]] {{}} <<>> «» “” ‘’ — – …",
    "`code` ~tilde~ ^caret^ |pipe| \\back\\slash /slash/ @at #hash &amp; ;:,.",
    "a.b,c;d:e!f?g (h) [i] {j} <k> \"l\" 'm' -n- _o_ *p* /q/ =r= +s+",
    "¡Hola! ¿Qué tal? 100€ £5 ¥10 §3 ©2024 ™ ° ± × ÷ ≠ ≤ ∑ √ ∞ ∂ → ⇒ ∀",
    # scripts
    "你好，世界！我喜欢吃苹果。",
    "これは日本語のテストです。カタカナとひらがな、漢字。",
    "안녕하세요 세계! 한국어 테스트입니다.",
    "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง",
    "مرحبا بالعالم، كيف حالك؟ السَّلَامُ عَلَيْكُمْ",
    "नमस्ते दुनिया, क्या हाल है? हिन्दी में परीक्षण।",
    "বাংলা ভাষা தமிழ் మొழి ಕನ್ನಡ മലയാളം ગુજરાતી ਪੰਜਾਬੀ",
    "שלום עולם, מה שלומך?",
    "Ελληνικά Русский український Հայերեն ქართული አማርኛ",
    "Tiếng Việt: Xin chào thế giới, tôi rất thích phở",
    "ᚠᚢᚦᚨᚱᚲ 𐌰𐌱𐌲 𓀀𓂀 ꦲꦏ꧀ꦱꦫ ᠮᠣᠩᠭᠣᠯ ⰀⰁⰂ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﬁ ﬂ Ⅷ",
    "中English混合한글mixedテキスト123",
    # marks and joiners
    "e\u0301 n\u0303 a\u030a o\u0308 Z\u0351\u036b\u0343a\u0323\u0307lgo",
    "é ñ å ö ü ç ß æ ø œ ł đ",
    "👍 😀😃😄 ❤️ ☕ ✈️",
    f"👩{_ZWJ}💻 👨{_ZWJ}👩{_ZWJ}👧{_ZWJ}👦 👍{_SKIN} 🏳️{_ZWJ}🌈 🇩🇪🇯🇵 1️⃣",
    "soft\u00adhyphen left\u200emark bom\ufeffinside private\ue000use replaced\ufffdhere",
    # characters that are legal and rare
    "bell\x07 escape\x1b[31mred\x1b[0m unit\x1fsep delete\x7f vertical\x0btab form\x0cfeed",
    "c1\x80\x9f noncharacter\ufffe plane16\U0010fffd",
    # code, links, mark-up
    "def f(x: int) -> int:\n    if x > 0:\n        return x ** 2  # square\n\treturn None\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] << 2; } // done\r\n",
    "SELECT * FROM \"t\" WHERE a <> 'b' AND c IS NOT NULL;",
    '{"key": [1, 2.5, true, null], "nested": {"a\\n": "\\u00e9"}}',
    "https://example.com/path/to/page.html?q=a%20b&lang=en#frag user.name+tag@mail.co.uk",
    '<div class="x">&nbsp;text</div> $E = mc^2$ \\frac{a}{b} C:\\Users\\me ~/.config',
    # long ones
    "a" * 64 + " " + "ab" * 32 + " " + "-" * 70 + " " + "=" * 33,
    "0123456789" * 8,
    "word" + " " * 40 + "word" + "\n" * 17 + "word" + "\t" * 9 + "!",
    "哈" * 50 + "ハ" * 30 + "😀" * 20,
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "supercalifragilisticexpialidocious antidisestablishmentarianism pneumonoultramicroscopicsilico",
    "y" * 130,
    # what looks like a special token
    "<s> </s> <unk> <pad> <mask> [CLS] [SEP] [MASK] [PAD] [UNK] <0x0A> ▁ Ġ Ċ ##ing",
    "<|endoftext|> <|im_start|>user\nhi<|im_end|>\n <|eot_id|> [INST] x [/INST] <end_of_turn>",
)


def around(specials: Iterable[str]) -> tuple[str, ...]:
    """Each special token of this vocabulary alone, within words, doubled and beside white space."""
    return tuple(
        probe
        for text in specials
        for probe in (text, f"one{text}two", f"x{text}{text}y", f"one {text} two\n{text}\n")
    )


def from_vocabulary(tokens: Sequence[str], spell: Callable[[str], str]) -> tuple[str, ...]:
    """Texts made of this vocabulary's own tokens: 24 of sixteen each, from its whole length.

    They tell a tokenizer that takes a whole word as a token from one that merges it. llama.cpp's texts end at a NUL.
    """
    step = max(1, len(tokens) // 384)
    chosen: list[str] = []
    for start in range(0, len(tokens), step):
        spelt = (spell(token) for token in tokens[start : start + step])
        word = next((word for word in spelt if word.strip() and "\0" not in word), "")
        if word:
            chosen.append(word if word.startswith(" ") else f" {word}")
    return tuple("".join(chosen[first : first + 16]) for first in range(0, min(len(chosen), 384), 16))
