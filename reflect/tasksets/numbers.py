r"""Read the number that a text gives as its answer, exactly: as a fraction.

    last_number("so x = -\$3,200.50")  ->  Number(Fraction(-6401, 2))
    last_number("3½")                  ->  Number(Fraction(7, 2))
    last_number("1.5 \times 10^3 m/s") ->  Number(Fraction(1500))
    last_number("3-5")                 ->  None

What is read: signs and currencies in any order; digits of every script, grouped as 1,234.5,
1.234,5 (with decimals, or two groups and more), 1 234,5, 1'234 or 12,34,567; a decimal comma (3,5);
fractions (1/2, ½, \frac{1}{2}) and mixed numbers (3 1/2); powers (2^10, 10³) and scientific
notation; percent; "thousand" to "trillion"; units; LaTeX, Markdown and HTML around the number.

A part of an expression is not its value: what belongs to a sum, product, root, range, ratio, date,
time, version, inequality or to a variable (3x) is no number.

Not covered: numbers written as words, complex numbers.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

TOLERANCE = Fraction(1, 10**6)
LONGEST = 4000  # digits of a number; a longer one is not read
WINDOW = 80  # characters on each side that decide whether a number is a part of something


class Number(NamedTuple):
    """A number of a text. `percent`: a percent sign follows it; the value of 50 % is 50."""

    value: Fraction
    percent: bool = False


def equal(a: Number, b: Number) -> bool:
    """Whole numbers exactly, others to one part in a million. With a percent sign on one side only,
    50 % equals 50 (the unit is left out) and 0.5."""
    if a.percent == b.percent:
        return _close(a.value, b.value)
    percent, other = (a.value, b.value) if a.percent else (b.value, a.value)
    return _close(percent, other) or _close(percent / 100, other)


def _close(a: Fraction, b: Fraction) -> bool:
    if a == b or (a.denominator == 1 and b.denominator == 1):
        return a == b
    return abs(a - b) <= max(TOLERANCE * max(abs(a), abs(b)), Fraction(1, 10**12))


def last_number(text: str, marked: bool = False) -> Number | None:
    """The last number of a text. None where there is none, where the last digits are a part of
    something, and for several numbers to choose from ("3 or 4").

    `marked`: the text is an answer without its derivation, so "3, 4" at its end is a list too.
    """
    text = _plain(text)
    terms = _terms(text)
    if not terms:
        return None
    if terms[1:]:
        gap = text[terms[-2].end() : terms[-1].start()]
        if APPROXIMATELY.fullmatch(gap) and (exact := _value(text, terms[-2])):
            return exact
        bare = marked or not re.search(LETTER, text)
        if (LIST if bare else CHOICE).fullmatch(gap):
            return None
    return _value(text, terms[-1])


def only_number(text: str) -> Number | None:
    """The number of a text that has exactly one; None for any other text."""
    if re.fullmatch(r"-?\d{1,18}(?:\.\d{1,18})?", text):  # most golds; a file has many
        return Number(Fraction(text))
    text = _plain(text)
    terms = _terms(text)
    return _value(text, terms[0]) if len(terms) == 1 else None


# ---- one spelling of everything: ASCII digits, - * / ^ for operators, a÷b for a fraction

COMMANDS = {
    **dict.fromkeys(("times", "cdot", "ast"), "·"), "div": "/",
    **dict.fromkeys(("pm", "mp"), "±"), **dict.fromkeys(("approx", "simeq", "sim"), "≈"),
    **dict.fromkeys(("le", "leq", "lt", "neq", "ne"), "<"),
    **dict.fromkeys(("ge", "geq", "gt"), ">"),
    **dict.fromkeys(("circ", "degree"), "°"), **dict.fromkeys(("dots", "ldots", "cdots"), "..."),
    **dict.fromkeys(("to", "implies", "rightarrow", "Rightarrow", "equiv"), "="),
    **dict.fromkeys("quad qquad left right displaystyle big Big therefore hspace".split(), " "),
    "euro": "€", "pounds": "£", "textdollar": "$", "percent": "%",
}  # fmt: skip
UNKNOWN = "§"  # a command that is not read
SIGNS = str.maketrans(
    dict.fromkeys("\u2212\u2043", "-")
    | dict.fromkeys("\u00d7\u22c5\u2219\u2022\u2715\u2716\u2217", "·")
    | dict.fromkeys("\u2243\u2245\u223c", "≈")
    | dict.fromkeys("\u2192\u21d2\u27f9\u27f6\u2261", "=")
    | dict.fromkeys("\uff0c\u3001\u060c", ", ")
    | dict.fromkeys("\u2019\u02bc", "'")
    | {"\u066c": ",", "\u066b": ".", "№": "#", "÷": "/", "\u2215": "/", "\u2044": "÷"}
    | {"≤": "<", "≥": ">", "≠": "<"}
)
SMALL = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻₀₁₂₃₄₅₆₇₈₉", "0123456789+-0123456789")
CODE = "USD|US|EUR|GBP|CHF|JPY|CNY|RMB|INR|AUD|CAD|NZD|NZ|HK|SEK|NOK|DKK|Rs|kr"
SYMBOL = r"[$\u00a2-\u00a5\u058f\u0e3f\u20a0-\u20cf\ufdfc]"
MONEY = (
    rf"(?:(?<!\w)(?:(?:{CODE}|A|C|R)\s?)?{SYMBOL}|(?<!\w)(?:{CODE})\b\.?|(?<!\w)(?:{CODE})(?=\d))"
)
LETTER = "[A-Za-zµÀ-ÖØ-öø-ɏͰ-ԯ]"  # of scripts that write spaces between words


def _compiled(*rules: tuple[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern), plain) for pattern, plain in rules]


LATEX = _compiled(
    (r"\{,\}|,\\!", ","),
    (r"\\([$%#&_])", r"\1"),
    (r"\\[,;: !>]|\\[()\[\]]|~", " "),
    (r"\^\s*\{?\s*\\circ\s*\}?", "°"),
    (
        r"([-+]?)\s*\\[dtc]?frac\s*(?:\{\s*(-?)\s*([\d.,]+)\s*\}\s*\{\s*(-?)\s*([\d.,]+)\s*\}"
        r"|(\d)\s*(\d))",
        r" \1\2\4\3\6÷\5\7 ",
    ),
    *[(r"\\(?:text\w*|math\w*|operatorname|boxed|fbox|emph|bm|underline)\s*\{([^{}]*)\}", r" \1 ")]
    * 3,
    (r"\^\s*\{\s*([-+]?\s*\d+)\s*\}", r"^\1"),
)
ANY = _compiled(
    (r"</?[A-Za-z][^<>]{0,200}>", " "),  # HTML
    (r"[-=]{1,3}>", "="),
    # a sign on either side of a currency
    (rf"([-+—]?)\s*{MONEY}\s*([-+—]?)\s*(?=\.?\d)", r" ¤\1\2"),
    (r"¤([-+—]*[\d.,]*\d)\s?k\b", r" \1 thousand "),
    (r"¤([-+—]*[\d.,]*\d)\s?(?:m|mn|M)\b", r" \1 million "),
    (r"¤([-+—]*[\d.,]*\d)\s?(?:b|bn|B)\b", r" \1 billion "),
    (rf"¤|{SYMBOL}", " "),
    (r"~~[^~\n]+~~", " "),  # struck out
    (r"(?<=\d)\s*~\s*(?=\d)", "-"),
    (r"~+|`+", " "),
    # a long dash is a sign, or an operator between numbers, or punctuation
    (r"(?:^\s*|(?<=[\s=:(\[])|(?<=\d)\s*)—(?=\.?\d)|(?:^\s*|(?<=\d)\s*)—\s+(?=\.?\d)", "-"),
    (r"—", ", "),
    (r"(?<=[\d)])\*\*(?=[-+(]?\d)|(?<=[\d)])\s+\*\*\s+(?=[-+(]?\d)", "^"),
    (r"(?<=[\d)])(\s*)[·xX](\s*)(?=[-(]?\d)", r"\1*\2"),
    (r"·", " "),
    (r"(?i)\b(?:minus|negative)\s+(?=\.?\d)", "-"),
    (r"([-+])\s*\(\s*([\d.,/]+)\s*\)(?!\s*[\^*/(])", r" \1\2"),  # -(1/2)
    (r"\|-\d[\d.]*\|", UNKNOWN),
    (r"\A\s*\*\s|(?<![\w*)])\*(?=\S)([^*\n]*)(?<=\S)\*(?![\w*(])|\*\*+", r"\1"),
    (r"(?<![^\W_])_+|_+(?![^\W_])", ""),
    # what hangs on a letter is no number: x_1, m^2
    (rf"(?<={LETTER})(?:_(?:\{{[^{{}}]*\}}|\w+)|\s?\^\s*\{{?\s*[-+]?\d+\s*\}}?)", ""),
)
BULLET = re.compile(r"^[ \t]*[-+*·][ \t]+", re.MULTILINE)


def _plain(text: str) -> str:
    text = re.sub(r"\s+", lambda m: "\n" if "\n" in m[0] else " ", html.unescape(text))
    if not text.isascii():
        text = re.sub(r"([⁰¹²³⁴-⁹]+)\s*[/\u2044\u2215]\s*([₀-₉]+)", _small, text)
        text = re.sub(r"[⁺⁻]?[⁰¹²³⁴-⁹]+", lambda m: "^" + m[0].translate(SMALL), text)
        text = "".join(map(_character, text.translate(SIGNS)))
    if len(BULLET.findall(text)) > 1:
        text = BULLET.sub("", text)
    if "\\" in text or "{" in text:
        for pattern, plain in LATEX:
            text = pattern.sub(plain, text)
        text = re.sub(r"\\([A-Za-z]+)", lambda m: COMMANDS.get(m[1], UNKNOWN), text)
        text = re.sub(r"§(?:\s?(?:\[[^\[\]]*\]|\{[^{}]*\}))+", UNKNOWN, text)
    for pattern, plain in ANY:
        text = pattern.sub(plain, text)
    return text


def _small(match: re.Match[str]) -> str:
    return f" {match[1].translate(SMALL)}÷{match[2].translate(SMALL)} "


@functools.lru_cache(4096)
def _character(char: str) -> str:
    """A character in its plain form; the long dash stays."""
    if char.isascii() or char in "—·÷":
        return char
    kind = unicodedata.category(char)
    if kind == "Nd":
        return str(unicodedata.decimal(char))
    if kind == "Pd":
        return "—" if char == "\N{HORIZONTAL BAR}" else "-"
    if kind == "Cf":  # zero width
        return ""
    if kind == "No" and "FRACTION" in unicodedata.name(char):
        value = Fraction(unicodedata.numeric(char)).limit_denominator(1000)
        return f" {value.numerator}÷{value.denominator} "
    return unicodedata.normalize("NFKC", char)


# ---- numbers, and what they may be a part of

LITERAL = (
    r"(?:(?<!\d )\d{1,3}(?: \d{3})+(?![\d/÷]| ?\d)(?:[.,]\d+)?|\d(?:\d|[.,'_](?=\d))*|(?<!\w)\.\d+)"
)
TOKEN = re.compile(
    rf"(?P<word>{LETTER}\w*(?:[-.]\d\w*)*)"
    rf"|(?:(?P<whole>\d+)\s+)?(?P<top>{LITERAL})\s*[/÷]\s*(?P<bottom>{LITERAL})"
    rf"|(?P<base>{LITERAL})(?:[eE](?P<e>[-+]?\d{{1,4}})(?!\w)|\s*\^\s*\(?(?P<power>[-+]?\d+)(?!\.?\d)\)?)?"
    r"(?:\s*\*\s*10\s*\^\s*\(?(?P<ten>[-+]?\d+)\)?)?"
)
FORMS = [  # (digits in groups, the separator of groups, the decimal separator)
    (r"\d+(?:\.\d+)?|\.\d+", "", "."),
    (r"(?:0|\d{4,}),\d+|\d+,(?:\d{1,2}|\d{4,})", "", ","),
    (r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?", ",", "."),
    (r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}", ".", ","),
    *[(rf"\d{{1,3}}(?:{c}\d{{3}})+(?:[.,]\d+)?", c, ",") for c in " '_"],
]
SCALES = {
    "dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12, "lakh": 10**5, "crore": 10**7, "k": 10**3,
    "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8,
}  # fmt: skip
SCALE = re.compile(
    r"\s*(dozen|hundred|thousand|million|billion|trillion|lakh|crore)\b|(k)(?!\w)|\s*([万萬亿億])",
    re.IGNORECASE,
)
PERCENT = re.compile(r"\s*(?:%|percent\b|per cent\b|pct\b)", re.IGNORECASE)
FUNCTION = r"(?:sin|cos|tan|log|ln|lg|exp|sqrt|max|min|gcd|lcm|mod|abs)"
PARTS = r"hal(?:f|ves)|thirds?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?"
MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|"
    r"sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
)
VARIABLE = "[b-hj-zB-HJ-ZͰ-Ͽ](?![\\w'])"  # one letter, but for the words "a" and "I"
BEFORE = re.compile(  # the text before a number that is a part of something
    rf"(?:[*/^<>±§√∛∑∫]\s*[(\[{{]?|[-+*/^]\s*[(\[{{]|\d[(\[{{]|\d:(?!\s)|\d\s+:\s+|::"
    rf"|\b(?:{FUNCTION}\d*\s*\(?|[A-Za-z]\((?:[A-Za-z]\s*=)?)|\b{MONTH}\.?,?\s+"
    rf"|(?:\d|%|percent|\b(?:half|third|quarter)s?)\s+(?:out\s+)?of\s+(?:the\s+)?)\s*\Z",
    re.IGNORECASE,
)
AFTER = re.compile(  # the text after it
    rf"[a-cefi-jn-rt-zKMBXYZͰ-Ͽ](?!{LETTER})|{LETTER}+\d|\(|\d|\.+\d"
    rf"|\s*(?:[xyznπ](?![\w'])|[√∛§]|(?:{PARTS})\b|{FUNCTION}\b\s*[\d(xyz]"
    rf"|and\s+(?:a|one|three)\s+(?:{PARTS}|quarters?)\b)"
    rf"|[\s)\]}}]*(?:[*^<>±]|/\s*(?:[-+\d(.§]|{LETTER}(?!{LETTER}))"
    rf"|[-+]\s*\(?(?:\.?\d|§|{VARIABLE})|:\d|\s:\s\d)"
)
EXCLAMATION = re.compile(rf"{LETTER}{{2,}}[^=\w]*\Z")
SIGN = re.compile(r"(?P<before>.*?)(?P<gap>\s*)(?P<sign>[-+]+)(?P<space>\s*)\Z", re.DOTALL)
_UNIT = rf"(?:\s?(?:%|{LETTER}+))?"
_ITEM = rf"{_UNIT}[\s()\[\]{{}}]*"
_NEXT = rf"[\s()\[\]{{}}]*(?:{LETTER}\w?\s*=\s*)?[-+]?\s*"
LIST = re.compile(
    rf"{_UNIT}\s+[-+]?|{_ITEM}(?:[,;|&]\s?|\b(?:and|or|to|through|until|vs)\b\s?)+{_NEXT}",
    re.IGNORECASE,
)
CHOICE = re.compile(rf"{_ITEM}(?:;|,?\s*\b(?:or|to|through|until|vs)\b){_NEXT}", re.IGNORECASE)
APPROXIMATELY = re.compile(rf"{_ITEM}≈\s*[-+]?\s*")


def _terms(text: str) -> list[re.Match[str]]:
    return [match for match in TOKEN.finditer(text) if match["word"] is None]


def _value(text: str, term: re.Match[str]) -> Number | None:
    """The value of a term with its sign; None where it is a part of something else."""
    value = _magnitude(term)
    end = term.end()
    while value is not None and (scale := SCALE.match(text, end)):
        value *= SCALES[(scale[1] or scale[2] or scale[3]).lower()]
        end = scale.end()
    percent = PERCENT.match(text, end)
    end = percent.end() if percent else end
    before, after = text[max(0, term.start() - WINDOW) : term.start()], text[end : end + WINDOW]
    sign = _sign(before)
    if value is None or sign is None or AFTER.match(after):
        return None
    if after.startswith("!") and not EXCLAMATION.search(before):  # a factorial
        return None
    return Number(sign * value, bool(percent))


def _sign(before: str) -> int | None:
    """1 or -1 by the text before a number; None where that text belongs to the number."""
    match = SIGN.fullmatch(before)
    if match is None:
        return None if BEFORE.search(before) else 1
    rest, gap, sign, space = match.group("before", "gap", "sign", "space")
    value = -1 if sign == "-" else 1
    if (
        len(sign) > 1
        or BEFORE.search(rest)
        or re.search(rf"[\d%°§][)\]}}]*\Z|(?<![A-Za-z]){VARIABLE}\Z", rest)
    ):
        return None
    if rest and re.search(rf"{LETTER}\Z", rest) and space:  # "Total - 3", not "It is - 3"
        return value if re.search(r"\b(?:is|are|be|equals?)\Z", rest) else 1
    return value if gap or not rest or not re.search(r"\w\Z", rest) else None


def _magnitude(term: re.Match[str]) -> Fraction | None:
    try:
        if term["top"]:
            top, bottom = _literal(term["top"]), _literal(term["bottom"])
            whole = int(term["whole"] or 0)
            dated = re.match(r"0\d", term["bottom"]) or re.match(r"0\d", term["top"])
            if top is None or bottom is None or dated or (term["whole"] and not 0 < top < bottom):
                return None
            return whole + top / bottom
        value = _literal(term["base"])
        if value is None:
            return None
        power, ten = int(term["power"] or 1), int(term["e"] or 0) + int(term["ten"] or 0)
        if abs(ten) > LONGEST or abs(power) * max(value.numerator.bit_length(), 1) > 3 * LONGEST:
            return None
        value = value**power if power != 1 else value
        return value * Fraction(10) ** ten if ten else value
    except (ZeroDivisionError, ValueError):  # ValueError: more digits than int reads
        return None


def _literal(text: str) -> Fraction | None:
    if len(text) > LONGEST:
        return None
    for pattern, group, point in FORMS:
        if re.fullmatch(pattern, text):
            return Fraction(
                text.replace(group, "").replace(point, ".") if group else text.replace(point, ".")
            )
    return None
