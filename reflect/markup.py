"""Text that imitates what a program writes around it: role tokens, and look-alikes of words.

A role token is what a chat template writes around a message, such as `<|im_end|>`. The rule for one
in a text (`ROLE_TOKEN`), instead of a list of models:

    <|name|> <|name> <name|>             a name between bars, fullwidth bars (DeepSeek) too
    [|name|] <<SYS>>                     EXAONE, Llama 2
    <start_of_turn> <|end_of_text>       a name with start, begin or end, and "of"
    <s> <eos> <pad> <sop> <BOS_TOKEN>    the short names of tokenizers
    <unused7> <extra_id_1> <fim_prefix>  reserved tokens
    [INST] [/INST] [TOOL_CALLS] [gMASK]  in brackets, only names of Mistral, GLM and InternLM

HTML, XML, code and mathematics have none of these, but for the HTML element `<s>`; see
`strip_role_tokens`.

Not covered: role names in plain words (`USER:`, `### Instruction:`) where the template is unknown:
no program can tell them from ordinary text. `Chat.markup` has those of a local model.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

BARS, OPEN, CLOSE = (
    "|\uff5c\u2223\u2758\u2502\u2503\u01c0\u00a6",
    "<\uff1c\ufe64\u2039",
    ">\uff1e\ufe65\u203a",
)
_BAR, _INNER = f"[{BARS}]", rf"[^{BARS}{OPEN}{CLOSE}\s\[\]{{}}'\"]"
_NAME = rf"{_INNER}{{1,64}}"
_SHORT = "bos|eos|pad|unk|cls|sep|sop|eop|eot|eom|eod|eog|eoh|eoa|gmask|smask"
_RESERVED = "unused|reserved|extra_id|extra_token|special|special_token|tokens_unused|control"
_BRACKETED = (
    "INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_[A-Z]+|MODEL_SETTINGS|CALL_ID"
    r"|UNUSED_TOKEN_\d+|control_\d+|[gs]MASK"
)
_SPACER = r"[_\u2581]"  # SentencePiece's space too
ROLE_TOKEN = re.compile(
    rf"[{OPEN}]{_BAR}{_NAME}{_BAR}[{CLOSE}]"
    rf"|[{OPEN}]{_BAR}\w{{1,40}}[{CLOSE}]|[{OPEN}]\w{{1,40}}{_BAR}[{CLOSE}]"
    rf"|\[{_BAR}{_NAME}{_BAR}\]|<</?SYS>>|\[/?(?:{_BRACKETED})\]|\]~!?b[\[\]]|\[e~\["
    rf"|[{OPEN}]/?(?i:(?:{_SHORT})(?:{_SPACER}token)?"
    rf"|\w{{0,20}}(?:start|begin|beginning|end){_SPACER}?of{_SPACER}?\w{{1,30}}"
    rf"|(?:{_RESERVED}){_SPACER}?\d{{1,6}}|fim{_SPACER}\w{{1,20}}"
    rf"|\w{{1,20}}{_SPACER}soft{_SPACER}token|seed:\w{{1,30}})[{CLOSE}]"
    r"|(?P<html></?s>)"
)

# Letters of other scripts that look like Latin ones. What Unicode itself maps (fullwidth, circled
# and mathematical letters), or names after a Latin letter, is not listed.
_LOOKALIKES = {
    letter: latin
    for latin, letters in {
        "a": "\u0430\u03b1\u0251",
        "b": "\u044c\u03b2\u0431\u0185",
        "c": "\u0441\u03f2",
        "d": "\u0501\u056a\u0257",
        "e": "\u0435\u0454\u03b5\u0451\u04bd",
        "f": "\u0493\u03dd\u0584",
        "g": "\u0261\u0581",
        "h": "\u04bb\u043d\u0570",
        "i": "\u0456\u03b9\u0269",
        "j": "\u0458\u03f3",
        "k": "\u043a\u03ba",
        "l": "\u04cf",
        "m": "\u043c\u03bc",
        "n": "\u043f\u03b7\u0578\u057c",
        "o": "\u043e\u03bf\u0585\u03c3",
        "p": "\u0440\u03c1",
        "q": "\u051b\u0566",
        "r": "\u0433\u0280",
        "s": "\u0455\ua731",
        "t": "\u0442\u03c4\u0565",
        "u": "\u03c5\u057d\u028b",
        "v": "\u0475\u03bd",
        "w": "\u051d\u0461\u03c9\u0561",
        ":": "\u2236\u02d0\u02f8\u05c3\ua789\u0589\u205a\u16ec\ua4fd",
        "x": "\u0445\u03c7",
        "y": "\u0443\u03b3\u04af",
    }.items()
    for letter in letters
}
_CONTROL = re.compile(r"[^\n\t -~]")


@functools.lru_cache(maxsize=4096)
def _fold(character: str) -> str:
    """The plain lower-case letters and digits that a character looks like; "" for an invisible
    one."""
    folded = ""
    for c in unicodedata.normalize("NFKD", character).casefold():
        kind = unicodedata.category(c)
        if kind in ("Mn", "Me", "Cf", "Cc", "Cn", "Co", "Cs") and c not in "\t\n":
            continue
        digit = unicodedata.digit(c, None)
        if c.isascii():
            folded += c
        elif digit is not None:
            folded += str(digit)
        elif c in _LOOKALIKES:
            folded += _LOOKALIKES[c]
        elif kind.startswith("Z"):
            folded += " "
        else:
            name = unicodedata.name(c, "")
            latin = re.search(r"(?:LATIN.*|SYMBOL) LETTER\b.*?\b([A-Z])(?: WITH .*)?$", name)
            folded += latin[1].lower() if latin else c
    return folded


def skeleton(text: str) -> tuple[str, list[int] | range]:
    """What the text looks like, in lower case, and the place in `text` of each of its characters.

    Look-alike letters and digits are folded to ASCII, accents and invisible characters dropped.
    """
    if text.isascii() and not _CONTROL.search(text):
        return text.lower(), range(len(text))
    folded = [_fold(c) for c in text]
    places = [i for i, letters in enumerate(folded) for _ in letters]
    return "".join(folded), places


def strip_role_tokens(text: str) -> str:
    """The text with a space for each role token. `<s>` and `</s>` are also HTML: they are broken up
    and stay (`</s >`, which HTML reads as the same)."""
    return ROLE_TOKEN.sub(lambda m: _broken(m[0]) if m["html"] else " ", text)


def break_role_tokens(text: str) -> str:
    """The text with a space before the last character of each role token: `<|im_end| >`. No
    tokenizer reads one there, and HTML and XML read `</s >` as before."""
    return ROLE_TOKEN.sub(lambda m: _broken(m[0]), text)


def _broken(token: str) -> str:
    return f"{token[:-1]} {token[-1]}"


def breaker(
    tokens: Collection[str], fold: Callable[[str], str] | None = None
) -> Callable[[str], str]:
    """A function that puts a space before the last character of each of `tokens` in a text. `fold`
    is applied to each character before tokens are compared."""
    known, lengths = frozenset(tokens), sorted({len(token) for token in tokens}, reverse=True)
    starts = re.compile("|".join(sorted({re.escape(token[0]) for token in tokens})) or r"(?!)")

    def once(text: str) -> str:
        folded = [fold(c) for c in text] if fold else text
        places = [i for i, part in enumerate(folded) for _ in part] if fold else range(len(text))
        shape = "".join(folded)
        parts, done = [], 0
        for at in (match.start() for match in starts.finditer(shape)):
            token = next((t for n in lengths if (t := shape[at : at + n]) in known), "")
            if token and places[at] >= done:
                last = places[at + len(token) - 1]
                parts += [text[done:last], " "]
                # one character that folds to a whole token is left out
                done = last + (last == places[at])
        return "".join([*parts, text[done:]]) if parts else text

    def every(text: str) -> str:
        """Again, for tokens within tokens."""
        while (changed := once(text)) != text:
            text = changed
        return text

    return every


def map_strings(value: object, change: Callable[[str], str]) -> object:
    """JSON data with `change` applied to each string in it, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {map_strings(k, change): map_strings(v, change) for k, v in value.items()}
    return [map_strings(v, change) for v in value] if isinstance(value, list | tuple) else value
