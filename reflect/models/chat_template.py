"""Renders messages by the chat template of a model, and splits its output into thought and answer.

The model's own chat template is used for all that it supports: the system role, tools, thinking.
Without a system role, the system text is put before the first user message; without tools, they are
described in the system message (`prompts/tools.jinja`), and calls and results of earlier turns are
plain text. Lessons are added to the default system text of a template that has one: a prompt with
lessons differs from a prompt without in the lessons only.

A thought (`<think>...</think>` at the beginning of an answer) is not part of the answer: verifiers
and reviews read the text after it, and the model does not see it again. A thought that never ends
leaves an empty answer.

No text of a message becomes markup: a special token of the tokenizer, or an added or role token
that the template writes, gets a space before its last character (`Chat.markup`). A message without
such text is encoded exactly as it is.

See `reflect.tasksets.thoughts` for the spellings.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from pydantic_core import from_json

from reflect import prompts
from reflect.errors import MessagesRefused
from reflect.markup import ROLE_TOKEN, breaker, map_strings
from reflect.tasksets.thoughts import THOUGHTS, split_thought

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

    from reflect.tasksets.task import Message
    from reflect.types import Json

# Tokens that some tokenizers count as special, and that mean something in an answer.
MARKS = frozenset(mark for pair in THOUGHTS for mark in pair) | {
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>",
    "<|channel|>", "<|message|>",
}  # fmt: skip
RESPONSE = frozenset({"<tool_response>", "</tool_response>"})  # see `without_tools`
PROBE = "zq probe qz"
# The name of a role in plain words, on a line of its own or before a text.
ROLE_LINE = re.compile(r"^[ \t]*(#{1,6} ?\w[^\n]{0,30}|\w[\w ]{1,20}:)[ \t]*$", re.MULTILINE)
THOUGHT_KEYS = ("thought", "reasoning", "reasoning_content")
PROBE_TOOL: Json = {
    "type": "function",
    "function": {
        "name": "probe_of_reflect",
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "string", "description": "x"}},
            "required": [],
        },
    },
}


class Chat:
    """A tokenizer and its chat template. `thinking`: on | off | auto, where the template has a
    switch for it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, name: str, thinking: str = "auto"
    ) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.options = {} if thinking == "auto" else {"enable_thinking": thinking == "on"}

    # -- the prompt

    def render(self, messages: Sequence[Message], tools: Sequence[Json] = ()) -> str:
        """The prompt: the conversation up to the place where the assistant answers. Raises
        MessagesRefused when the template refuses it."""
        messages = self._with_default(messages)
        plain = [self.plain(with_arguments(without_thought(message))) for message in messages]
        tools = [self.plain(tool) for tool in tools]
        if not self.knows_tools:
            plain, tools = without_tools(plain, tools), ()
        system = [m["content"].strip() for m in plain if m["role"] == "system"]
        forms = [plain, system_first(plain), fold_system(plain)] if system else [plain]
        refusal: Exception | None = None
        for i, form in enumerate(forms):
            if i and form == forms[i - 1]:
                continue
            try:
                text = self._apply(form, tools)
            except Exception as e:  # jinja2's TemplateError: whatever the template's author raises
                refusal = e
                continue
            # Some templates drop the system role silently.
            if form is forms[-1] or all(part in text for part in system):
                return text
        assert refusal is not None
        raise self._refused(refusal) from refusal

    def _with_default(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages; a system message that was added for lessons gets the template's default
        system text first, which the same prompt without lessons has."""
        first = next((m for m in messages if m["role"] == "system"), None)
        if first is None or not isinstance(first["content"], str):
            return messages
        if not self.default_system or not prompts.begins_with_lessons(first["content"]):
            return messages
        both = {**first, "content": f"{self.default_system}\n{first['content']}"}
        return [both if message is first else message for message in messages]

    @cached_property
    def default_system(self) -> str:
        """The system text that the template writes when there is no system message; "" if none."""
        user: Message = {"role": "user", "content": "a"}
        try:
            bare = self._apply([user])
            system = self._apply([{"role": "system", "content": PROBE}, user])
        except Exception:  # a template without system role
            return ""
        before, probe, after = system.partition(PROBE)
        if not probe or not bare.startswith(before) or not bare.endswith(after):
            return ""
        return bare[len(before) : max(len(before), len(bare) - len(after))].strip()

    def plain(self, data: Json) -> Json:
        """A message or a tool in which no text is markup.

        The marks of thoughts and calls stay in an answer of the assistant; those that are no
        special tokens also stay elsewhere, because tasks ask for them ("think in <think> tags"),
        but not in tool output.
        """
        change = self._breakers.get(data.get("role", ""), self._breakers[""])
        return {key: map_strings(value, change) for key, value in data.items()}

    @cached_property
    def _breakers(self) -> dict[str, Callable[[str], str]]:
        """By role; "" is any other."""
        sets = {
            "assistant": self.markup - MARKS,
            "tool": self.markup | RESPONSE,
            "": self.markup - (MARKS - self._special_tokens),
        }
        return {role: breaker(tokens, self._fold) for role, tokens in sets.items()}

    @cached_property
    def _fold(self) -> Callable[[str], str] | None:
        """What the tokenizer's normalizer makes of a character; None if it compares special tokens
        before it normalizes, as nearly all do."""
        normalizer = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "normalizer", None)
        added = self.tokenizer.added_tokens_decoder.values()
        if normalizer is None or not any(token.normalized for token in added):
            return None
        begin = normalizer.normalize_str("x")  # it may begin every text with a mark
        return lru_cache(maxsize=4096)(
            lambda c: str(normalizer.normalize_str(f"x{c}")).removeprefix(begin)
        )

    @cached_property
    def _special_tokens(self) -> frozenset[str]:
        return frozenset(self._special.values()) | set(self.tokenizer.all_special_tokens)

    @cached_property
    def markup(self) -> frozenset[str]:
        """What only the template may write: special tokens, and the added tokens in brackets, role
        tokens and names of roles (`ASSISTANT:`, `### Response:`) that it writes. Words and one or
        two characters are no markup."""
        samples = list(self._samples())
        written = "\n".join([*self._sources(), *(text for _, text in samples)])
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        tokens = {token for token in added if token[:1] in "<[" and token[-1:] in ">]"}
        tokens = {token for token in tokens if token in written} | self._special_tokens
        tokens |= {match[0] for match in ROLE_TOKEN.finditer(written)}
        plain = "\n".join(text for tools, text in samples if not tools)
        tokens |= {match[1] for match in ROLE_LINE.finditer(plain.replace(PROBE, "\n"))}
        stripped = {token.strip(" \n\t\N{LOWER ONE EIGHTH BLOCK}") for token in tokens}
        fold = self._fold
        stripped |= {"".join(map(fold, token)) for token in stripped} if fold else set()
        return frozenset(text for text in stripped if len(text) > 2 and not text.isalnum())

    def _sources(self) -> Collection[str]:
        templates = self.tokenizer.chat_template
        return templates.values() if isinstance(templates, dict) else [str(templates)]

    def _samples(self) -> Iterator[tuple[bool, str]]:
        """Conversations as the template writes them, with and without tools."""
        roles = ("user", "assistant", "system", "tool")
        texts: list[Message] = [{"role": role, "content": PROBE} for role in roles]
        user, answer, system, result = texts
        call = {"type": "function", "id": "c", "function": {"name": "d", "arguments": {}}}
        calls: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
        result |= {"name": "d", "tool_call_id": "c"}
        for talk in ([user, answer, user], [system, user, answer], [user, calls, result]):
            for tools in ((), (PROBE_TOOL,)):
                with suppress(Exception):  # whatever the template's author raises
                    yield bool(tools), self._apply(talk, tools)

    def _apply(
        self, messages: Sequence[Message], tools: Sequence[Json] = (), speak: bool = True
    ) -> str:
        given = {"tools": list(tools)} if tools else {}
        text: str = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=speak, tokenize=False, **given, **self.options
        )
        return text

    def _refused(self, e: Exception) -> MessagesRefused:
        return MessagesRefused(f"The chat template of {self.name} refuses these messages: {e}.")

    @cached_property
    def knows_tools(self) -> bool:
        """True if the template describes tools to the model."""
        try:
            return "probe_of_reflect" in self._apply(
                [{"role": "user", "content": "a"}], [PROBE_TOOL]
            )
        except Exception:
            return False

    @cached_property
    def opened(self) -> str:
        """The mark with which the template begins the thought of an answer; "" if it does not."""
        prompt = self.render([{"role": "user", "content": "a"}]).rstrip()
        return next((begin for begin, _ in THOUGHTS if prompt.endswith(begin)), "")

    @cached_property
    def closing(self) -> str:
        """What the template writes after an answer."""
        answer = "zq answer qz"
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
        try:
            whole = self._apply(talk, speak=False)
        except Exception as e:
            raise self._refused(e) from e
        return whole[whole.rfind(answer) + len(answer) :] if answer in whole else ""

    # -- the output

    @cached_property
    def _special(self) -> dict[int, str]:
        return {
            i: token.content
            for i, token in self.tokenizer.added_tokens_decoder.items()
            if token.special
        }

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, without special tokens other than marks of thoughts and calls."""
        special = self._special
        if not any(special.get(token) in MARKS for token in tokens):
            return str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        kept = [token for token in tokens if special.get(token, "<think>") in MARKS]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))

    def split(self, text: str) -> tuple[str, str]:
        """(thought, answer) of an output of the model."""
        return split_thought(text, self.opened)


def without_thought(message: Message) -> Message:
    """An earlier answer as the model reads it again: without its thought, and with text for a
    content that is null."""
    rest = {key: value for key, value in message.items() if key not in THOUGHT_KEYS}
    rest["content"] = rest.get("content") or ""
    if rest["role"] == "assistant" and isinstance(rest["content"], str):
        for begin, end in THOUGHTS:
            if rest["content"].lstrip().startswith(begin) and end in rest["content"]:
                rest["content"] = rest["content"].split(end, 1)[1].lstrip()
    return rest


def with_arguments(message: Message) -> Message:
    """Tool calls as templates want them: the arguments as an object, where the API has their JSON
    text."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call["function"])
        if isinstance(function.get("arguments"), str):
            with suppress(ValueError):  # an unreadable call stays as it is
                function["arguments"] = from_json(function["arguments"] or "{}")
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}


def without_tools(messages: Sequence[Message], tools: Sequence[Json]) -> list[Message]:
    """The same conversation for a template without tools: their description, calls and results are
    text."""
    plain: list[Message] = []
    results = False  # is the last message a result? Those of several calls are one: roles alternate
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool":
            text = f"<tool_response>\n{content}\n</tool_response>"
            if results:
                plain[-1]["content"] += f"\n{text}"
            else:
                plain.append({"role": "user", "content": text})
        elif message.get("tool_calls"):
            calls = [_as_json(call["function"]) for call in message["tool_calls"]]
            lines = [content, *(f"<tool_call>{call}</tool_call>" for call in calls)]
            plain.append({"role": role, "content": "\n".join(lines).strip()})
        else:
            plain.append(dict(message))
        results = role == "tool"
    if tools:
        rows = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
        description = prompts.render("tools", tools=[prompts.LINE_ENDS.sub(" ", x) for x in rows])
        at = next((i for i, m in enumerate(plain) if m["role"] == "system"), None)
        if at is None:
            plain.insert(0, {"role": "system", "content": description})
        else:
            plain[at]["content"] += f"\n\n{description}"
    return plain


def _as_json(function: Json) -> str:
    """{"name", "arguments"} of a call in one line."""
    given = with_arguments({"tool_calls": [{"function": function}]})["tool_calls"][0]["function"]
    return json.dumps(
        {"name": given["name"], "arguments": given.get("arguments", {})}, ensure_ascii=False
    )


def system_first(messages: Sequence[Message]) -> list[Message]:
    """The same conversation with its system text in one message at the head, for a template that
    refuses a later one."""
    system = "\n".join(m["content"] for m in messages if m["role"] == "system")
    return [{"role": "system", "content": system}, *(m for m in messages if m["role"] != "system")]


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """The same conversation with its system text at the head of the first user message."""
    system = "\n".join(m["content"] for m in messages if m["role"] == "system").strip()
    rest = [dict(m) for m in messages if m["role"] != "system"]
    for message in rest:
        if message["role"] == "user":
            message["content"] = f"{system}\n\n{message['content']}"
            return rest
    return [{"role": "user", "content": system}, *rest]
