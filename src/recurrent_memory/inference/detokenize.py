"""Text out of tokens as they come, never half a character."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..model import RecurrentMemoryModel

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
        text = self._decode(self._ids)
        self._given = self._certain(text)

    def push(self, token: int) -> str:
        """The text that is certain with one more token."""
        self._ids.append(token)
        text = self._decode(self._ids)
        certain = max(self._given, self._certain(text))
        new = text[self._given : certain]
        self._given = certain
        if len(self._ids) > _MOST_HELD:
            self._ids = self._ids[-_CONTEXT:]
            self._given = max(0, len(self._decode(self._ids)) - (len(text) - certain))
        return new

    def flush(self) -> str:
        """What was held back."""
        text = self._decode(self._ids)
        new, self._given = text[self._given :], len(text)
        return new

    def _certain(self, text: str) -> int:
        """How many characters no further token can change."""
        certain = len(text)
        while certain > max(0, len(text) - _MOST_UNCERTAIN) and text[certain - 1] == _REPLACEMENT:
            certain -= 1
        return certain

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def eos_ids(model: RecurrentMemoryModel, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text: what the tokenizer, the model and its generation settings say."""
    found: set[int | None] = set()
    for value in (tokenizer.eos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id):
        found |= set(value) if isinstance(value, list | tuple) else {value}
    return frozenset(i for i in found if i is not None)
