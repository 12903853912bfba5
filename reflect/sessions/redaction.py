"""Remove keys and home folders from texts of sessions, before anything is stored.

Three rules, from certain to likely: secrets with a known form (PEM blocks, tokens with the prefix
of their service, JWT, passwords in URLs); values that are named as secrets (`NAME_KEY=`,
`"password": `, `--token `, `Authorization: `); and long words that look random. The third one also
removes checksums and other long random words: a lesson needs none of them.

Not covered: a secret of ordinary words that no name introduces, one that was split or encoded to
hide it, and personal data other than the home folder.
"""

from __future__ import annotations

import re
from collections import Counter
from math import log2
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = "[redacted]"
LEAST = 20  # characters of a word that may be a random one
BITS = 3.3  # Shannon entropy per character from which on such a word is random

# The name of a secret, within a longer name: GITHUB_TOKEN, dbPassword, aws_secret_access_key.
NAMED = (
    r"(?:pass(?:word|wd|phrase|code)?(?![a-z])|pwd(?!\W{1,4}[/~])|secret|token(?!s?[_-]?(?:budget|count"
    r"|limit|rate|usage|length|id|type|per|in\b|out\b)|s\b|i[sz])|api[ _-]?key|(?:access|account"
    r"|private|signing|encryption|service|shared|master|auth|license|deploy|ssh|storage|secret)"
    r"[ _-]?key|credentials?|auth[_-]?(?:token|code|value)|bearer|cookie|session[_-]?(?:id|key)|jwt"
    r"|otp|mfa|x-auth\w*|(?:pin|verification|access|security|recovery|backup|invite|device)"
    r"[ _-]?code|mnemonic|seed[ _-]?phrase|psk\b|(?:bind|root|db|admin|ldap)pw\b)"
)
_START = r"(?<![\w.-])"
# A long word before the name is not searched from each of its letters.
NAME = (
    rf"(?<![\w.-])(?:[\w.-]{{0,60}}?{NAMED}[\w.-]{{0,24}}"
    r"|[A-Z][A-Z0-9_]{0,60}_(?:KEY|PASS|PAT|PW|CREDS?|AUTH|DSN|SAS|SALT))"
)
VALUE = r"(?:\\?\"(?:[^\"\\\n]|\\[^\"\n])+\\?\"?|'[^'\n]+'?|`[^`\n]+`?|[^\s\"'`,;&|<>(){}\[\]\\]+)"
INSIDE = r"[^\s\"'`,;|)}\]]"  # a character of a value without quotes
BETWEEN = "(?:[nrt]|value|string|str|body|text|data|is|was|to|set|for|are|now)"
PREFIXES = (
    r"sk[-_]|[rp]k_(?:live|test)_|gh[oprsu]_|github_pat_|gl[a-z]{2,5}-|xox[a-z]-|xapp-|xwfp-|AIza"
    r"|ya29\.|GOCSPX-|npm_|pypi-|SG\.|key-|hf_|r8_|gsk_|xai-|pplx-|tvly-|fw_|dop_v1_|doo_v1_"
    r"|dor_v1_|dp\.[a-z]{2,5}\.|hv[sbr]\.|s\.(?=[A-Za-z0-9]{24}\b)|dapi|lin_(?:api|oauth)_|secret_"
    r"|ntn_|figd_|PMAK-|NRAK-|NRII-|NRJS-|glsa_|glc_|sntry[su]_|sbp_|FlyV1|fo1_|shp(?:at|ca|pa|ss)_"
    r"|sq0[a-z]{3}-|EAAA|whsec_|rnd_|pat(?:[-_]|(?=\w{14}\.))|ops_|AGE-SECRET-KEY-|A3T[A-Z0-9]|A[KS]IA|ABIA|ACCA"
    r"|AC(?=[0-9a-f]{32}\b)|SK(?=[0-9a-f]{32}\b)|EZ[AT]K|eyJ|ATATT3|ATCTT3|BBDC-|tfp_|CFPAT-|nfp_"
    r"|duffel_|lsv2_|pcsk_|phc_|phx_|rpa_|v2\.local\.|Atza\||Atzr\||cio_|mcp_|tskey-|ATBB|bkua_"
    r"|dckr_(?:pat|oat)_|oy2|vercel_|vc[a-z]_|waka_|y0_|t1\.|AQVN|LTAI|AKID|xkeysib-|xsmtpsib-|re_"
)
RULES: tuple[tuple[str, str, int], ...] = (
    # a private key, also one whose end is missing
    (r"-----BEGIN [A-Z0-9 ]*(?:PRIVATE KEY|SECRET)[A-Z ]*-----.*?(?:-----END [^-]*-----|\Z)",
     MARK, re.S),
    (r"PuTTY-User-Key-File-.*?(?:Private-MAC: *\w+|\Z)", MARK, re.S),
    # a password in a URL
    (r"\b([a-z][a-z0-9+.-]*://)[^\s/@'\"<>]+@", rf"\1{MARK}@", re.I),
    # a token with the prefix of its service
    (rf"(?<![A-Za-z0-9])(?:{PREFIXES})(?=\S{{0,80}}(?:\d|[a-z][A-Z]))[\w.=/+~-]{{8,}}", MARK, 0),
    (r"\b\d{8,10}:[\w-]{30,}", MARK, 0),  # a Telegram bot
    (r"https://(?:hooks\.slack\.com/|[\w.]*discord(?:app)?\.com/api/webhooks/)[\w/-]+", MARK, 0),
    # headers
    (r"\b((?:proxy-)?authorization\\?[\"']?\s*[:=]\s*\\?[\"']?)[^\"'\n\\]+", rf"\1{MARK}", re.I),
    (r"\b((?:set-)?cookie\\?[\"']?\s*:\s*\\?[\"']?)[^\"'\n\\]+", rf"\1{MARK}", re.I),
    (r"\b((?:bearer|basic|token|apikey|digest|aws4-hmac-sha256)\s+)(?=\S*[\d=])[\w.~+/=:-]{8,}",
     rf"\1{MARK}", re.I),
    # an option of a command
    (rf"(?<!\S)(--?{NAME.removeprefix(_START)}(?:[ =]|\s+)){VALUE}", rf"\1{MARK}", re.I),
    (r"\b(curl\b[^\n|;&]{0,300}?\s(?:-u|--user|--proxy-user)[ =]?)\S+", rf"\1{MARK}", 0),
    (r"\b((?:mysql\w*|mariadb\w*)\b[^\n|;&]{0,300}?\s-p)[^\s-]\S*", rf"\1{MARK}", 0),
    (r"\b((?:sshpass|(?:docker|podman|az|oc|helm registry)\s+login|smbclient|redis-cli|ldap\w+"
     r"|mongo\w*|openssl|zip|unzip|7za?|kinit|xfreerdp)\b[^\n|;&]{0,300}?\s-[apwkP]\s*)\S+",
     rf"\1{MARK}", 0),
    (r"\b(htpasswd\s+-\w*b\w*\s+\S+\s+\S+\s+)\S+", rf"\1{MARK}", 0),
    (r"\b(net\s+use\s[^\n]{0,200}?/user:\S+\s+)\S+", rf"\1{MARK}", re.I),
    (r"\b((?:echo|printf)\s+(?:-\w+\s+)?)[^\n|]{1,200}(?=\|[^\n|]{0,200}?(?:sudo\s+-S|-stdin))",
     rf"\1{MARK} ", 0),
    (r"\b(pass(?:in|out)?[ =]+pass:)\S+", rf"\1{MARK}", 0),
    (r"\b(machine\s+\S+\s+login\s+\S+\s+password\s+)\S+", rf"\1{MARK}", 0),
    (r"(?<![\w.*/-])([\w.*-]+:(?:\d{2,5}|\*):[^:\s/]+:[^:\s/]+:)[^:\s]+", rf"\1{MARK}", 0),
    # hashes of passwords, parameters of a URL, a wireless network
    (r"\$(?:[156]|2[abxy]|y|argon2\w*|scrypt|pbkdf2\S*?)\$[^\s:\"']+", MARK, 0),
    (r"\{S?(?:SHA|MD5|CRYPT)\d*\}\S+", MARK, 0),
    (r"([?&](?:sig|key|code|auth|hash|sid|session|ticket|otp|pw)=)[^&\s\"'<>]+", rf"\1{MARK}",
     re.I),
    (r"\b(WIFI:[^\n]{0,100}?\bP:)[^;\n]+", rf"\1{MARK}", 0),
    # the second argument of a call, a phrase of words, a number, the prompt of a program
    (rf"({NAME}[\"'`]\s*,\s*[\"'])(?!value\b)[^\"'\n]{{4,}}", rf"\1{MARK}", re.I),
    (r"((?:auth|login)\s{0,3}[:=]?\s{0,3}[\[(]\s{0,3}[\"'][^\"'\n]{0,80}[\"'],\s{0,3}[\"'])[^\"'\n]+",
     rf"\1{MARK}", re.I),
    (r"\b((?:mnemonic|(?:seed|recovery|backup)[ _-]?(?:phrase|words))\W{1,6})"
     r"(?:[a-z]+[ ,]+){5,}[a-z]+",
     rf"\1{MARK}", re.I),
    (r"\b(PIN\s*[:=]\s*)\d{3,8}\b", rf"\1{MARK}", re.I),
    (r"\b(pass(?:word|phrase) for [^\s]{1,200}:\s+)\S+", rf"\1{MARK}", re.I),
    # after the name of a secret, in whatever way: letters with digits
    (rf"({NAME}\W{{1,12}}(?:{BETWEEN}\W{{1,6}}){{0,3}})(?={INSIDE}*\d)(?={INSIDE}*[A-Za-z])"
     rf"{INSIDE}{{6,}}", rf"\1{MARK}", re.I),
    # a value that is named as a secret
    (rf"({NAME}\\?[\"'`]?\]?\s*(?::=|=>|->|=|:)\s*)"
     rf"(?![\s=:]|(?:true|false|null|none|undefined)\b){VALUE}", rf"\1{MARK}", re.I),
    (rf"\b({NAMED}(?:\s+\w+){{0,2}}\s+(?:is|was|to)\s+[\"'`]?)(?=\S{{6}})[^\s\"'`]*[\d@#$%^&*!]\S*",
     rf"\1{MARK}", re.I),
    (r"<((?:\w+:)?\w*(?:password|secret|token|apikey|key)\w*)>[^<\n]+<", rf"<\1>{MARK}<", re.I),
)  # fmt: skip
HOMES = re.compile(
    r"(?:/|%2F|\\u002f)(?:home|Users|export/home)(?:/|%2F|\\u002f)[^/\\\s\"'`:;,<>()%]+"
    r"|\b[A-Za-z]:(?:\\{1,4}|/)Users(?:\\{1,4}|/)[^/\\\s\"'`:;,<>()]+"
    r"|(?<![\w/.-])/root(?![\w.-])|/var/root(?![\w.-])"
    r"|(?<![\w])-(?:home|Users)-[^-/\\\s\"'`]+",
    re.I,
)
RANDOM = re.compile(rf"(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/=_-]{{{LEAST},}}")
HEX = re.compile(r"[0-9a-fA-F]{32,}")
UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")  # names of sessions
_RULES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern, flags), by) for pattern, by, flags in RULES
]


def redact(text: str, home: str = "") -> str:
    """The text without keys; home folders are `~`. `home`: the folder of this user, wherever it
    is."""
    for pattern, by in _RULES:
        text = pattern.sub(by, text)
    text = RANDOM.sub(_without_random, text)
    if len(home) > 1:
        text = text.replace(home, "~")
    return HOMES.sub("~", text)


def redact_all(value: object, clean: Callable[[str], str] = redact) -> object:
    """The value with every text in it redacted, names of dicts included."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list | tuple):
        return [redact_all(item, clean) for item in value]
    if isinstance(value, dict):
        return {clean(str(name)): _named(name, item, clean) for name, item in value.items()}
    return value


def _named(name: object, item: object, clean: Callable[[str], str]) -> object:
    """The value of a field: a text under the name of a secret is one."""
    secret = isinstance(item, str) and item and isinstance(name, str) and _SECRET.fullmatch(name)
    return MARK if secret else redact_all(item, clean)


_SECRET = re.compile(rf"{NAME}", re.I)


def _without_random(match: re.Match[str]) -> str:
    """The match with MARK in place of each part that looks random. Paths are read part by part."""
    word = match[0]
    if _random(word):
        return MARK
    return "/".join(MARK if _random(part) else part for part in word.split("/"))


def _random(word: str) -> bool:
    """Whether a word looks like a key: a long hexadecimal number, or letters of both cases and
    digits in no order."""
    if HEX.fullmatch(word):
        return True
    core = word.strip("=")
    if UUID.fullmatch(core):
        return False
    if len(core) < LEAST or core.count("/") > len(core) / 12 or not re.search(r"\d", core):
        return False
    mixed = re.search("[a-z]", core) and re.search("[A-Z]", core)
    digits = sum(c.isdigit() for c in core)
    if not mixed and not (digits >= 4 and re.search("[a-zA-Z]", core)):
        return False
    parts = re.split(r"[_/-]", core)
    if max(map(len, parts)) < 12:  # words, dates and versions joined by - or _
        return False
    counts = Counter(core)
    bits = -sum(n / len(core) * log2(n / len(core)) for n in counts.values())
    return bits >= BITS
