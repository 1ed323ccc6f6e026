"""Text out of tokens as they come, never half a character."""

from __future__ import annotations

from typing import Any

_REPLACEMENT = "\ufffd"
_MOST_UNCERTAIN = 3  # of a character of 4 bytes, at most 3 can be there without the last
_CONTEXT = 8
_MOST_HELD = 64


class IncrementalDecoder:
    """Decodes one stream of tokens. Constant memory.

    A character may be spread over several tokens; until it is whole, decoding gives replacement characters at the end,
    which are held back.

    Args:
        tokenizer: Whose tokens they are.
        context: Tokens that came before, which are not to be decoded again (`▁` at the beginning is no space).

    Example:
        >>> decoder = IncrementalDecoder(tokenizer)
        >>> "".join(decoder.push(i) for i in ids) + decoder.flush()
    """

    def __init__(self, tokenizer: Any, context: list[int] | None = None) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context or [])[-_CONTEXT:]
        self._given = len(self._decode(self._ids))

    def push(self, token: int) -> str:
        """The text that is certain with one more token."""
        self._ids.append(token)
        text = self._decode(self._ids)
        certain = len(text)
        while certain > max(self._given, len(text) - _MOST_UNCERTAIN) and text[certain - 1] == _REPLACEMENT:
            certain -= 1
        new = text[self._given : certain]
        self._given = max(self._given, certain)
        if len(self._ids) > _MOST_HELD and certain == len(text):
            self._ids = self._ids[-_CONTEXT:]
            self._given = len(self._decode(self._ids))
        return new

    def flush(self) -> str:
        """What was held back."""
        new = self._decode(self._ids)[self._given :]
        self._given += len(new)
        return new

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
