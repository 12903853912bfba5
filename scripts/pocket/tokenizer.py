"""The pocket model's tokenizer: words are single tokens, letters are separate tokens, made-up verbs are two syllables.

WordPiece over a vocabulary written down by rule, in the ordinary Hugging Face layout. Text is lower-cased and white space
is folded, except for the line break, which is a token. A word outside the vocabulary falls to its letters.
"""

from __future__ import annotations

import re

from scripts.pocket.worlds import dialect, letters

SPECIAL = ["<pad>", "<unk>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|spare1|>", "<|spare2|>"]
PUNCTUATION = list(".,:;!?'\"()[]{}<>#*-+=/\\|&%$@^_~`")
ENGLISH = """
a about above add again all allowed also always an and another answer answers any apply are ask asked at attempt attempts avoid away be because before
best better both bring but by call called can cannot careful check choose come comma condition correct could count counted counter counting counts cut day did directly do does
done down each edit edits end ends error every exactly example exclude fail failed fails feedback fewer find first fit fits five follow following for four from get give given go goes gone good
great group had happened has have help helps here hold holds how i if ignore immediately in instead is it its just keep know known largest last later learn learned learning left lesson lessons let line
lines little long look make makes many may me mean meaning means method methods middle mind more most must my name never new next nine no none not note nothing now number numbers occur occurs of off
often old on once one only open operation operations or order other others out over own part per piece place please points possible practice print prompt put question questions quick quickly
read reason remember repeat replace reply report rest result retire reverse review reviewed revise reward rewarded rewards right rotate rule rules running said same say says see seven
shop should show shown six small so some something sort spell spelled spelling start state step steps still stop such swap system take task tasks tell ten than that the their them then there these they
thing think this those three time times to together too total tried true try turn two use used useful uses using value wait was way we well went were what when where which while who why will with without
words work worked works wrong write written wrote yes yet you your zero list lists calculator tool price buy sell stock money customer plus minus divided multiplied sum difference product
item items letter times twice ends word appear appears contain contains worth
""".split()


def vocabulary() -> list[str]:
    """Every token once, in a fixed order."""
    numbers = [str(n) for n in range(100)]
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    syllables = dialect.SYLLABLES
    tokens = [*SPECIAL, "\n", *PUNCTUATION, *numbers, *alphabet, *syllables, *ENGLISH, *letters.WORDS]
    tokens += [f"##{t}" for t in [*"0123456789", *alphabet, *syllables]]
    tokens += [f"##{p}" for p in PUNCTUATION]
    return list(dict.fromkeys(tokens))


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build():  # -> transformers.PreTrainedTokenizerFast
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(vocabulary())}
    inner = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", max_input_chars_per_word=200))
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    pieces = Regex(r"\n|[a-z]+|[0-9]+|[^\sa-z0-9]")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(r" ?\n ?"), "\n"),
            *[decoders.Replace(f" {mark}", mark) for mark in ".,:;!?)]'"],
            *[decoders.Replace(f"{mark} ", mark) for mark in "([#'"],
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        additional_special_tokens=[t for t in SPECIAL if t.startswith("<|") and t != "<|end|>"],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    check(tokenizer)
    return tokenizer


def check(tokenizer) -> None:
    """The promises of this file; raises AssertionError when the vocabulary breaks one."""
    for verb in [*dialect.verbs(True), *dialect.verbs(False)]:
        assert tokenizer.tokenize(verb) == [verb[:2], f"##{verb[2:]}"], tokenizer.tokenize(verb)
    for word in [*letters.WORDS, *dialect.OPS]:
        assert tokenizer.tokenize(word) == [word], tokenizer.tokenize(word)
    for text in ("a, b. answer: 3", "note 1 sort 0, 2 reverse 1\nadd when: the task says zubi do: not sort, not swap"):
        assert tokenizer.decode(tokenizer.encode(text)) == text, tokenizer.decode(tokenizer.encode(text))


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))
