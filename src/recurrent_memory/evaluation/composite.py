"""Token ids of a long text with sentences put in, without tokenizing the long text for every sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..tasks.hiding import word_ends

_CONTEXT_TOKENS = 48


class NoiseText:
    """A text, its token ids, and where each token starts.

    Args:
        text: The text.
        tokenizer: A `transformers` fast tokenizer.
    """

    def __init__(self, text: str, tokenizer: Any) -> None:
        self.text, self._encode = text, tokenizer.backend_tokenizer
        encoding = self._encode.encode(text, add_special_tokens=False)
        self.ids = np.asarray(encoding.ids, dtype=np.int64)
        self.starts = np.fromiter((start for start, _ in encoding.offsets), dtype=np.int64, count=len(self.ids))

    def splice(self, token: int, sentences: Sequence[str]) -> Insert:
        """What changes in the ids when sentences are put at the first word end from a token on.

        The text around the place is tokenized anew, and must meet the old tokens on both sides: then the result is the
        tokenization of the whole text with the sentences in it.
        """
        low = self._word_start(max(0, token - _CONTEXT_TOKENS), -1)
        for reach in (_CONTEXT_TOKENS, 4 * _CONTEXT_TOKENS, 16 * _CONTEXT_TOKENS):
            high = self._word_start(min(len(self.ids), token + reach), 1)
            start, stop = int(self.starts[low]), int(self.starts[high]) if high < len(self.ids) else len(self.text)
            window = self.text[start:stop]
            near = int(self.starts[token]) - start
            place = next((end for end in word_ends(window) if end >= near), None)
            if place is None:
                continue
            changed = window[:place] + "".join(f" {sentence}" for sentence in sentences) + window[place:]
            ids = self._encode.encode(changed, add_special_tokens=False).ids
            before, after = self.ids[low:high], np.asarray(ids, dtype=np.int64)
            margin = 4
            whole_left = low == 0 or np.array_equal(before[:margin], after[:margin])
            whole_right = high == len(self.ids) or np.array_equal(before[-margin:], after[-margin:])
            if whole_left and whole_right:
                return Insert(low, high, after)
        raise InputError(f"no place for a sentence near token {token} of the text; is there white space in it?")

    def _word_start(self, token: int, direction: int) -> int:
        """The next token, or the one before, that begins with white space after a word; else an end of the text."""
        while 0 < token < len(self.ids):
            start = int(self.starts[token])
            if self.text[start].isspace() and not self.text[start - 1].isspace():
                return token
            token += direction
        return token


@dataclass(frozen=True, slots=True)
class Insert:
    """The tokens `low … high` of the noise are replaced by `ids`."""

    low: int
    high: int
    ids: np.ndarray


class Composite:
    """The token ids of a noise text with inserts, as an array that is never made.

    Args:
        noise: The ids of the noise.
        inserts: In order, not overlapping.
    """

    def __init__(self, noise: np.ndarray, inserts: Sequence[Insert]) -> None:
        self._pieces: list[tuple[int, np.ndarray]] = []
        position = last = 0
        for insert in inserts:
            if insert.low < last:
                raise InputError("two sentences are too near to each other in the text")
            for piece in (noise[last : insert.low], insert.ids):
                self._pieces.append((position, piece))
                position += len(piece)
            last = insert.high
        self._pieces.append((position, noise[last:]))
        self.length = position + len(noise) - last
        self.first_change = inserts[0].low if inserts else len(noise)

    def slice(self, start: int, stop: int) -> np.ndarray:
        """The ids `start … stop`."""
        parts = [
            piece[max(0, start - position) : stop - position]
            for position, piece in self._pieces
            if position < stop and position + len(piece) > start
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
