"""Hold the answers of a local model to a form: any JSON object, or JSON by a schema.

llguidance (the extra [grammar]; https://github.com/guidance-ai/llguidance) compiles the form and
says, before each token, which tokens may follow. The sampler leaves out the others, so that every
complete answer has the form; the end token is among the allowed ones only where an answer may end.
Of the engines, it is the one without a dependency: xgrammar needs triton and a runtime of its own.

Where the chat template opens a thought, the form begins after the thought. A model that opens its
thoughts itself does not think in such an answer.

An answer that meets its limit of tokens is only the beginning of the form; a review is brought to
its end before (`Closing`).
"""

from __future__ import annotations

import importlib.util
import json
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from reflect.errors import SchemaRefused
from reflect.tasksets.thoughts import END

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from reflect.models.chat_template import Chat
    from reflect.types import Json

INSTALL = "Install it: pip install 'second-nature[grammar]'"
TAIL = 16  # tokens that are decoded to find the end of a thought
CONTINUES = "##"  # begins a token of WordPiece that continues a word
# Between items and after names of fields: what models write, and no endless white space.
LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def is_installed() -> bool:
    """Is the engine of the extra [grammar] here?"""
    return importlib.util.find_spec("llguidance") is not None


class AnswerForm:
    """The form of one answer while it is sampled. A function of the tokens so far: an answer may
    begin again."""

    def __init__(
        self,
        matcher: Any,
        chat: Chat,
        closing: Closing | None = None,
        spaced: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        self._matcher, self._chat, self._closing = matcher, chat, closing
        self._spaced = spaced  # the same text without and with a space before it
        self._start: int | None = None if chat.opened else 0  # tokens before the form
        self._consumed = 0

    def allowed(self, tokens: Sequence[int], size: int, left: int) -> torch.Tensor | None:
        """Which of `size` tokens may follow, as booleans [V]; None where each may. `left`: tokens
        that the answer may still have."""
        if len(tokens) < self._consumed:
            self._matcher.reset()
            self._start, self._consumed = (None if self._chat.opened else 0), 0
        if self._start is None:
            if not END.search(self._chat.decode(tokens[-TAIL:])):
                return None
            self._start = self._consumed = len(tokens)
        if len(tokens) > self._consumed:
            self._matcher.consume_tokens(list(tokens[self._consumed :]))
            self._consumed = len(tokens)
        bias = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        allowed_V = torch.zeros(size, dtype=torch.bool)
        allowed_V[: len(bias)] = bias[:size] > 0
        if self._spaced and self._matcher.compute_ff_bytes() == b" ":
            # No token is a space alone: the engine lists what may follow the space.
            after = [i for i in allowed_V.nonzero()[:, 0].tolist() if i in self._spaced]
            allowed_V = torch.zeros(size, dtype=torch.bool)
            allowed_V[[self._spaced[i] for i in after]] = True
        if self._closing and left <= self._closing.within:
            allowed_V = self._closing.narrow(allowed_V)
        return allowed_V if bool(allowed_V.any()) else None

    @property
    def problem(self) -> str:
        """Why the engine gave up on this answer; "" if it did not."""
        return str(self._matcher.get_error()) if self._matcher.is_error() else ""


class Closing(NamedTuple):
    """How an answer is brought to its end in the last `within` tokens, by the ids of tokens that
    may end something: an answer, or that begin with one of these characters."""

    within: int
    ends: list[int]
    quotes: list[int]
    brackets: list[int]
    braces: list[int]

    def narrow(self, allowed_V: torch.Tensor) -> torch.Tensor:
        """The allowed tokens that end something, if there are any."""
        ends, quotes, brackets, braces = (
            [i for i in ids if i < len(allowed_V) and allowed_V[i]] for ids in self[1:]
        )
        in_text = brackets and braces  # elsewhere, at most one of the two may follow
        chosen = quotes if in_text else ends or brackets or braces or quotes
        if not chosen:
            return allowed_V
        narrowed_V = torch.zeros_like(allowed_V)
        narrowed_V[chosen] = True
        return narrowed_V


class Grammars:
    """Compiles forms for one tokenizer. `size`: entries of the network's vocabulary."""

    def __init__(self, chat: Chat, ends: Collection[int], size: int) -> None:
        self._chat, self._ends, self._size = chat, sorted(ends), size

    @cached_property
    def problem(self) -> str:
        """Why answers cannot be held to a form; "" if they can."""
        if not is_installed():
            return f"Answers in a given form need llguidance. {INSTALL}"
        try:
            _ = self._tokenizer
        except Exception as e:  # whatever the engine does not know about a tokenizer
            return f"llguidance cannot use the tokenizer of {self._chat.name}: {str(e)[:200]}"
        return ""

    @cached_property
    def _spaced(self) -> bool:
        """Is it WordPiece? Its words are joined by spaces, which are no part of its tokens."""
        inner = json.loads(self._chat.tokenizer.backend_tokenizer.to_str())
        return bool(inner["model"]["type"] == "WordPiece")

    @cached_property
    def _tokenizer(self) -> Any:
        import llguidance

        if not self._spaced:
            from llguidance.hf import from_tokenizer

            size = max(self._size, len(self._chat.tokenizer))
            return from_tokenizer(self._chat.tokenizer, size, self._ends)
        words = _Words(self._chat, self._ends[0])
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(words), eos_token=self._ends)

    def form(self, response_format: Json | None) -> AnswerForm | None:
        """A new form for one answer; None for text, and where `problem` says why not. With
        "close_within": N the answer is brought to its end in the last N tokens. SchemaRefused for a
        schema that cannot be compiled."""
        if response_format is None or response_format["type"] == "text" or self.problem:
            return None
        import llguidance

        try:
            grammar = self._grammar(response_format)
            matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
            problem = matcher.get_error()
        except (ValueError, RecursionError) as e:
            problem = str(e)
        if problem:
            line = " ".join(problem.split())[:200]
            raise SchemaRefused(f"The form of the answer cannot be compiled: {line}")
        within = response_format.get("close_within")
        closing = Closing(within, *self._closers) if isinstance(within, int) else None
        return AnswerForm(matcher, self._chat, closing, self._with_space)

    @cached_property
    def _with_space(self) -> dict[int, int]:
        """WordPiece: id of `##x` -> id of `x`; {} for other tokenizers."""
        if not self._spaced:
            return {}
        vocabulary: dict[str, int] = self._chat.tokenizer.get_vocab()
        return {
            i: vocabulary[token.removeprefix(CONTINUES)]
            for token, i in vocabulary.items()
            if token.startswith(CONTINUES) and token.removeprefix(CONTINUES) in vocabulary
        }

    @cached_property
    def _closers(self) -> tuple[list[int], list[int], list[int], list[int]]:
        by: dict[bytes, list[int]] = {b'"': [], b"]": [], b"}": []}
        for i in range(self._tokenizer.vocab_size):
            text = self._tokenizer.decode_bytes([i]).strip()
            if i not in self._ends and text[:1] in by and not text.strip(b'"]}'):
                by[text[:1]].append(i)
        return self._ends, by[b'"'], by[b"]"], by[b"}"]

    def _grammar(self, response_format: Json) -> str:
        import llguidance

        schema: Json = {"type": "object"}
        if response_format["type"] == "json_schema":
            schema = response_format["json_schema"].get("schema") or schema
        schema = {**schema, "x-guidance": LAYOUT}
        if self._spaced:  # a space begins the first word; no space where a choice follows
            schema["x-guidance"] = {"whitespace_flexible": False}
            text = f'start: " " form\nform: %json {json.dumps(schema)}'
            return str(llguidance.LLMatcher.grammar_from_lark(text))
        return str(llguidance.LLMatcher.grammar_from_json_schema(schema))


class _Words:
    """The tokens of WordPiece as bytes, for llguidance."""

    bos_token_id = None

    def __init__(self, chat: Chat, end: int) -> None:
        self.eos_token_id = end
        tokenizer = chat.tokenizer
        self.special_token_ids = [
            i for i, token in tokenizer.added_tokens_decoder.items() if token.special
        ]
        special = set(self.special_token_ids)
        self.tokens = [
            token.encode() if i in special else _bytes_of(token)
            for i, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
        ]
        self._ids = {text: i for i, text in enumerate(self.tokens) if i not in special}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: bytes) -> list[int]:
        """Exactly these bytes, the longest token first; bytes that no token has are left out."""
        ids: list[int] = []
        while text:
            sizes = range(min(self._longest, len(text)), 0, -1)
            size = next((n for n in sizes if text[:n] in self._ids), 0)
            ids += [self._ids[text[:size]]] if size else []
            text = text[size or 1 :]
        return ids


def _bytes_of(token: str) -> bytes:
    if len(token) > len(CONTINUES) and token.startswith(CONTINUES):
        return token.removeprefix(CONTINUES).encode()
    return token.encode() if token.isspace() else f" {token}".encode()
