"""The text of an answer while it grows, at a cost per token that does not grow with the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reflect.models.generation import GenerationRow
    from reflect.models.local import LocalModel

WINDOW = 64  # tokens that are decoded again at each read, at least
TRIES = 32  # places at which a cut is tried


class PartialText:
    """The text of a row so far, without its thought.

    The beginning of the answer is decoded once. It is cut from the rest only where both parts
    decode to the text of the whole: not within a letter, and not where a decoder drops a space.
    """

    def __init__(self, row: GenerationRow) -> None:
        self.row = row
        self._restart()

    def _restart(self) -> None:
        self._text = ""  # of the first tokens
        self._size = 0  # how many they are
        self._most = 2 * WINDOW  # tokens behind them before the next cut

    def read(self, model: LocalModel) -> str:
        """The text now. It equals the text of all tokens decoded together."""
        tokens = self.row.tokens
        if len(tokens) < self._size:  # the row has started again
            self._restart()
        rest = model.decode(tokens[self._size :])
        text = self._text + rest
        if len(tokens) - self._size >= self._most:
            self._cut(model, tokens[self._size :], rest)
        return model.chat.split(text)[1]

    def _cut(self, model: LocalModel, tokens: list[int], text: str) -> None:
        last = len(tokens) - WINDOW
        for size in range(last, max(0, last - TRIES), -1):
            head = model.decode(tokens[:size])
            if text.startswith(head) and head + model.decode(tokens[size:]) == text:
                self._text += head
                self._size += size
                self._most = 2 * WINDOW
                return
        self._most *= 2
