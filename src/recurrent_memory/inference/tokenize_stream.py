"""Token ids of a text of any length, in constant memory, exactly as if the whole text were tokenized at once.

A *window* of the text is encoded at a time. It begins a little before the first token that is not known yet, at a
known token boundary; the known tokens of this overlap must come out again, which absorbs what a tokenizer does at the
beginning of its input (a prefixed `▁`, an added space) and proves that window and whole text are in step. Of the new
tokens, those up to a *cut* are emitted: a token boundary that no text which may follow can move.

Why a cut holds:

- **Between pre-tokens** (words). A pre-tokenizer goes through the text from left to right and looks ahead no further
  than to the end of a run of one class of characters. After the cut there are two more words and something other than
  white space, and the window is encoded again with other ends and with adverse continuations: nothing may change.
- **Inside a pre-token** (BPE without pre-tokenizer, or a run of a million letters). BPE applies the merge of the lowest
  rank first, so, where the tokens of `xy` have a boundary between x and y, `BPE(xy) = BPE(x) + BPE(y)`; and whether two
  sequences of tokens can stand side by side depends on the two tokens that touch. The whole text has a boundary at one
  of the last `longest` positions of the window, `longest` being the length of the longest token. The cut is one that
  *all* these ends agree on. Other models (Unigram, WordPiece) are never cut inside a word.

A word that has no end and no token boundary inside (WordPiece makes one unknown token of it) is shortened in the
middle, if no encoding notices. Where no cut is found the window grows, up to `MAX_WINDOW_CHARS`; then it is an error,
never a guess.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unicodedata import category

from recurrent_memory.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

MAX_WINDOW_CHARS = 1 << 22
"""Where no stable token boundary is found in so many characters, the text cannot be streamed."""

_CONTINUATIONS = ("a", "1", ".", "'s", " ", "\n", " \n", "\u0301", "\u0323")
"""What may follow a window: a character of every class, an end of line, marks above and below the letter before."""

_ANCHORS = ("", "\n", "␞", "a", ".")
"""What may be put before a window, so that a prefix added by the tokenizer does not touch the text."""

_NON_SPACE = re.compile(r"\S")
_NEVER_FIRST = ("M", "Cf", "Sk", "Lm")  # categories of characters that may combine with the one before


def stream_token_ids(
    tokenizer: PreTrainedTokenizerBase, chunks: Iterable[str], *, block_chars: int = 65536
) -> Iterator[list[int]]:
    """Yield lists of token ids that together are `tokenizer(text, add_special_tokens=False)["input_ids"]`.

    `text` is the concatenation of `chunks`, which may be cut anywhere and be of any length. Memory does not depend on
    the length of the text, for a fast tokenizer; a slow one (without offsets) needs the whole text at once.

    Args:
        block_chars: how much text to encode at a time. More is needed only where the tokenizer's decisions reach
            further than that.

    Raises:
        InputError: no token boundary in `MAX_WINDOW_CHARS` characters is certain: this tokenizer cannot stream this
            text exactly. `block_chars` is not positive.

    Example:
        >>> chunks = ["Mary went to the gar", "den."]
        >>> ids = [i for block in stream_token_ids(tokenizer, chunks) for i in block]  # doctest: +SKIP
    """
    return TokenStreamer(tokenizer, block_chars=block_chars).stream(chunks)


class TokenStreamer:
    """`stream_token_ids` for many texts: what has to be known of the tokenizer is found out once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, block_chars: int = 65536) -> None:
        if block_chars < 1:
            raise InputError(f"block_chars={block_chars} is not a positive number of characters; the default is 65536")
        self.tokenizer = tokenizer
        self.block_chars = block_chars
        self._encoder = _Encoder.of(tokenizer) if tokenizer.is_fast else None

    def stream(self, chunks: Iterable[str]) -> Iterator[list[int]]:
        """Yield the token ids of one text, block by block; see `stream_token_ids`."""
        if self._encoder is None:
            text = "".join(chunks)
            ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            return (ids[i : i + self.block_chars] for i in range(0, len(ids), self.block_chars))
        return _Stream(self._encoder, _pieces(chunks, self.block_chars), self.block_chars).run()


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Token ids, with the characters and the pre-token (word) of each. Positions are those of the stream's buffer."""

    ids: list[int]
    spans: list[tuple[int, int]]
    words: list[int | None]
    left: int  # where the window begins in the buffer
    anchor: int  # characters that were put before it

    def __len__(self) -> int:
        return len(self.ids)

    def start(self, i: int) -> int:
        return self.spans[i][0] + self.left - self.anchor

    def end(self, i: int) -> int:
        return self.spans[i][1] + self.left - self.anchor

    def is_boundary(self, i: int) -> bool:
        """Whether no character belongs to tokens on both sides of the boundary before token i."""
        return i == 0 or self.spans[i - 1][1] <= self.spans[i][0]

    def is_word_start(self, i: int) -> bool:
        return i > 0 and self.words[i] != self.words[i - 1] and self.is_boundary(i)

    def num_words_after(self, i: int) -> int:
        return (self.words[-1] or 0) - (self.words[i] or 0)

    def first_at(self, position: int) -> int:
        """Index of the first token that begins at `position` or after it."""
        return bisect_left(self.spans, position - self.left + self.anchor, key=lambda span: span[0])

    def last_at(self, position: int) -> int:
        """Index of the last token that begins at `position` or before it; -1 if there is none."""
        return bisect_right(self.spans, position - self.left + self.anchor, key=lambda span: span[0]) - 1

    def known(self, first: int, last: int) -> list[_Known]:
        """Tokens first...last-1, which turned out to be certain."""
        return [
            _Known(self.ids[i], self.start(i), self.end(i), self.is_boundary(i), self.is_word_start(i))
            for i in range(first, last)
        ]

    def index_after(self, known: Sequence[_Known], position: int) -> int | None:
        """Index of the first token after `position` if the tokens before it are exactly the `known` ones, else None."""
        index = self.first_at(position)
        offset = index - len(known)
        if offset < 0 or (index > 0 and self.end(index - 1) > position):
            return None
        same = all(
            self.ids[offset + k] == token.id
            and self.start(offset + k) == token.start
            and self.end(offset + k) == token.end
            for k, token in enumerate(known)
        )
        return index if same else None


@dataclass(frozen=True, slots=True)
class _Known:
    """A token that is certain."""

    id: int
    start: int
    end: int
    is_boundary: bool
    is_word_start: bool

    def moved(self, distance: int) -> _Known:
        return _Known(self.id, self.start - distance, self.end - distance, self.is_boundary, self.is_word_start)


@dataclass(frozen=True, slots=True)
class _Encoder:
    """The tokenizer without special tokens, truncation and padding, and how far its decisions reach."""

    backend: Tokenizer
    name: str
    longest: int  # characters of the longest entry of the vocabulary
    reach: int  # characters of the longest added token, which may be at the end of a window, half read
    cuts_inside_words: bool
    continuations: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> _Encoder:
        from tokenizers.models import BPE

        backend = _plain_backend(tokenizer)
        added = backend.get_added_tokens_decoder().values()
        model = backend.model
        is_local = isinstance(model, BPE) and not (
            model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix
        )
        return cls(
            backend=backend,
            name=str(tokenizer.name_or_path or type(tokenizer).__name__),
            longest=max(map(len, backend.get_vocab()), default=1),
            reach=max((len(token.content) for token in added), default=0),
            cuts_inside_words=is_local,
            continuations=_CONTINUATIONS + tuple({token.content for token in added if token.lstrip}),
        )

    @property
    def context(self) -> int:
        """Characters of overlap in which a window has to fall into step with the text."""
        return max(64, 2 * self.longest)

    @property
    def margin(self) -> int:
        """Characters between a cut between words and the end of the window, at least."""
        return max(32, self.reach + 1)

    def tokens(self, texts: list[str], left: int, anchor: str) -> Iterator[_Tokens]:
        """The tokens of each text, which begins at `left` in the buffer, with the anchor put before it."""
        encodings = self.backend.encode_batch([anchor + text for text in texts], add_special_tokens=False)
        return (_Tokens(e.ids, e.offsets, e.word_ids, left, len(anchor)) for e in encodings)

    def ids(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids


class _Stream:
    """One text on its way: a buffer, of which the tokens before `done` are known and emitted."""

    def __init__(self, encoder: _Encoder, pieces: Iterator[str], block_chars: int) -> None:
        self.encoder = encoder
        self.pieces = pieces
        self.block_chars = block_chars
        self.target = block_chars  # unknown characters wanted in the window
        self.buffer = ""
        self.done = 0
        self.known: list[_Known] = []  # the last tokens before `done`
        self.at_origin = True  # whether the buffer begins where the text does
        self.anchor = ""
        self.position = 0  # of the buffer in the text, for messages

    def run(self) -> Iterator[list[int]]:
        while True:
            at_end = self._fill()
            tokens, first = self._window()
            cut = len(tokens) if at_end else self._find_cut(tokens, first)
            if cut is None:
                self._widen(tokens)
                continue
            if cut > first:
                yield tokens.ids[first:cut]
            if at_end:
                return
            self._advance(tokens, first, cut)

    def _fill(self) -> bool:
        """Read on; whether the text ended."""
        parts = [self.buffer]
        missing = max(1, self.target - (len(self.buffer) - self.done))
        for piece in self.pieces:
            parts.append(piece)
            missing -= len(piece)
            if missing <= 0:
                break
        self.buffer = "".join(parts)
        return missing > 0

    def _window(self) -> tuple[_Tokens, int]:
        """Encode the text from some way before `done`: its tokens, and the index of the first that is not known."""
        for left, anchor in self._window_starts():
            tokens = next(self.encoder.tokens([self.buffer[left:]], left, anchor))
            first = tokens.index_after(self._known_from((left + self.done) // 2), self.done)
            if first is not None:
                self.anchor = anchor
                return tokens, first
        raise self._cannot("does not repeat its own tokens when it begins in the middle of the text")

    def _window_starts(self) -> Iterator[tuple[int, str]]:
        """Where a window may begin, and with what before it."""
        if self.at_origin:
            yield 0, ""
            return
        for distance in (1, 2, 4):
            left = self._known_start(self.done - distance * self.encoder.context)
            yield from ((left, anchor) for anchor in self._anchors())

    def _anchors(self) -> list[str]:
        """The anchors, that which worked last first."""
        return [self.anchor, *(anchor for anchor in _ANCHORS if anchor != self.anchor)]

    def _known_start(self, position: int) -> int:
        """The last known token boundary up to `position`, at the beginning of a word if there is one."""
        before = [token for token in self.known if token.start <= position] or self.known[:1]
        fit = [token for token in before if token.is_boundary and _may_begin(self.buffer, token.start)]
        words = [token for token in fit if token.is_word_start]
        return (words or fit or before)[-1].start

    def _known_from(self, position: int) -> list[_Known]:
        """The known tokens that begin at `position` or after it; the last one in any case."""
        return [token for token in self.known if token.start >= position] or self.known[-1:]

    def _find_cut(self, tokens: _Tokens, first: int) -> int | None:
        """Index of a token such that those before it are certain whatever follows, as far on as can be."""
        encoder, end = self.encoder, len(self.buffer)
        if len(tokens) - first < 2:
            return None
        for cut in self._candidates(tokens, first, encoder.margin, between_words=True):
            middle = (tokens.start(cut) + end) // 2
            if self._is_stable(tokens, cut, [end, end - 1, end - 2, end - 3, middle]):
                return cut
        if encoder.cuts_inside_words:
            for cut in self._candidates(tokens, first, 2 * encoder.longest + encoder.margin, between_words=False):
                if end - tokens.start(cut) > 16 * encoder.context:
                    break
                ends = list(range(end, end - encoder.longest, -1))
                if self._word_is_stable(tokens, first, cut) and self._is_stable(tokens, cut, ends):
                    return cut
        return None

    def _candidates(self, tokens: _Tokens, first: int, margin: int, *, between_words: bool) -> Iterator[int]:
        """Possible cuts, further and further from the end of the window, which `margin` is the least distance from."""
        seen = first
        limit = len(self.buffer) - self.done if between_words else 16 * self.encoder.context
        while margin < limit:
            last = tokens.last_at(len(self.buffer) - margin)
            cut = self._best_cut(tokens, first, last, between_words=between_words)
            if cut is None:
                return
            if cut != seen:
                yield cut
            seen, margin = cut, 4 * margin

    def _best_cut(self, tokens: _Tokens, first: int, last: int, *, between_words: bool) -> int | None:
        """Of the boundaries before tokens first+1...last, the last one, or one near it that has white space beside it."""
        best: int | None = None
        if between_words and tokens.words[first] == tokens.words[last]:
            return None
        for i in range(last, first, -1):
            if best is not None and best - i > 64:
                break
            if not (self._is_between_words(tokens, i) if between_words else tokens.is_boundary(i)):
                continue
            if self._has_space_beside(tokens.start(i)):
                return i
            best = i if best is None else best
        return best

    def _is_between_words(self, tokens: _Tokens, i: int) -> bool:
        """Whether a word begins with token i, which is not white space only, and two more words begin after it."""
        if not tokens.is_word_start(i) or tokens.num_words_after(i) < 2:
            return False
        return _NON_SPACE.search(self.buffer, tokens.start(i), len(self.buffer) - self.encoder.reach) is not None

    def _has_space_beside(self, position: int) -> bool:
        return self.buffer[position - 1].isspace() != self.buffer[position].isspace()

    def _word_is_stable(self, tokens: _Tokens, first: int, cut: int) -> bool:
        """Whether the word that `cut` is in begins where it seems to, however the window goes on."""
        start = cut
        while start > first and not tokens.is_word_start(start):
            start -= 1
        if start == first:
            return True  # an earlier window saw the beginning of the word
        end = min(len(self.buffer), tokens.start(start) + 4 * self.encoder.context)
        return self._is_stable(tokens, start, [end, end - 1, end - 2, end - 3])

    def _is_stable(self, tokens: _Tokens, cut: int, ends: list[int]) -> bool:
        """Whether the tokens before `cut` stay the same when the text stops at any of `ends`, or goes on otherwise."""
        position = tokens.start(cut)
        begin = self._token_start(tokens, cut, position - self.encoder.context)
        left = tokens.start(begin)
        known = tokens.known(min(tokens.first_at((left + position) // 2), cut - 1), cut)
        tails = [self.buffer[left:end] for end in ends if end > position]
        tails += [tails[0] + continuation for continuation in self.encoder.continuations]
        for anchor in [""] if left == 0 and self.at_origin else self._anchors():
            if self._all_repeat(known, position, tails[:1], left, anchor):
                return self._all_repeat(known, position, tails[1:], left, anchor)
        return False

    def _all_repeat(self, known: list[_Known], position: int, tails: list[str], left: int, anchor: str) -> bool:
        """Whether every tail has the same tokens up to `position`."""
        return all(t.index_after(known, position) is not None for t in self.encoder.tokens(tails, left, anchor))

    def _token_start(self, tokens: _Tokens, cut: int, position: int) -> int:
        """Index of a token, at `position` or a little before it, that a window may begin with."""
        begin = tokens.first_at(tokens.left)  # not in an anchor
        last = min(tokens.last_at(position), cut - 1)
        nearest = fit = begin
        for i in range(last, begin, -1):
            if tokens.start(i) < position - self.encoder.context:
                break
            if not tokens.is_boundary(i):
                continue
            nearest = max(nearest, i)
            if _may_begin(self.buffer, tokens.start(i)):
                fit = max(fit, i)
                if tokens.is_word_start(i):
                    return i
        return fit if fit > begin else nearest

    def _advance(self, tokens: _Tokens, first: int, cut: int) -> None:
        """Take the tokens up to `cut` as known, and forget the text that no window will need again."""
        self.done = tokens.start(cut)
        horizon = self.done - 8 * self.encoder.context
        begin = tokens.last_at(horizon)
        if begin > first:
            self.known = tokens.known(begin, cut)
        else:
            self.known = [*self.known, *tokens.known(first, cut)]
            self.known = [token for token in self.known[:-1] if token.end > horizon] + self.known[-1:]
        self.at_origin = self.at_origin and horizon <= 0
        base = 0 if self.at_origin else self.known[0].start
        self.known = [token.moved(base) for token in self.known]
        self.buffer, self.done, self.position = self.buffer[base:], self.done - base, self.position + base
        self.target = self.block_chars

    def _widen(self, tokens: _Tokens) -> None:
        """No cut was found: want more text, or make room where one token or none covers a long stretch."""
        if self._shorten(tokens):
            return
        if len(self.buffer) - self.done >= MAX_WINDOW_CHARS:
            raise self._cannot(f"leaves no token boundary certain in {len(self.buffer) - self.done} characters")
        self.target = min(2 * max(self.target, len(self.buffer) - self.done), MAX_WINDOW_CHARS)

    def _shorten(self, tokens: _Tokens) -> bool:
        """Drop the middle of a last word that is one token, or of a gap without tokens, if no encoding notices."""
        keep = max(1024, 8 * self.encoder.longest)
        start, end = self.done, len(self.buffer)
        if len(tokens) and tokens.end(len(tokens) - 1) > self.done:
            last = len(tokens) - 1
            start, end = (tokens.start(last), tokens.end(last))
            if end - start <= 4 * keep:
                start, end = end, len(self.buffer)
        if end - start <= 4 * keep:
            return False
        shorter = self.buffer[: start + keep] + self.buffer[end - keep :]
        if any(
            self.encoder.ids(self.buffer + more) != self.encoder.ids(shorter + more) for more in ("", "a", " a", ".")
        ):
            return False
        self.position += len(self.buffer) - len(shorter)
        self.buffer = shorter
        return True

    def _cannot(self, why: str) -> InputError:
        return InputError(
            f"the tokenizer {self.encoder.name!r} cannot be streamed: near character {self.position + self.done} it {why}; "
            "tokenize the whole text at once and pass the token ids"
        )


def _plain_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A tokenizer that shares the vocabulary of this one, but not its truncation, padding and trimmed offsets."""
    from tokenizers import Tokenizer

    original: Any = tokenizer.backend_tokenizer
    plain = Tokenizer(original.model)
    if original.normalizer is not None:
        plain.normalizer = original.normalizer
    if original.pre_tokenizer is not None:
        plain.pre_tokenizer = original.pre_tokenizer
    added = original.get_added_tokens_decoder()
    plain.add_tokens([added[i] for i in sorted(added)])
    if plain.get_added_tokens_decoder() != added:  # ids with gaps cannot be given to a new tokenizer
        plain = Tokenizer.from_str(original.to_str())
        plain.no_truncation()
        plain.no_padding()
        plain.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
    plain.encode_special_tokens = tokenizer.split_special_tokens
    return plain


def _may_begin(text: str, position: int) -> bool:
    """Whether a normalizer could not join the character here with the one before."""
    char = text[position]
    return char.isascii() or not (category(char).startswith(_NEVER_FIRST) or _is_jamo_or_flag(char))


def _is_jamo_or_flag(char: str) -> bool:
    """Parts of Hangul syllables and of flags, which join by their number."""
    return "\u1160" <= char <= "\u11ff" or "\ud7b0" <= char <= "\ud7ff" or "\U0001f1e6" <= char <= "\U0001f1ff"


def _pieces(chunks: Iterable[str], size: int) -> Iterator[str]:
    """The chunks, those cut that are longer than `size`."""
    for chunk in chunks:
        for start in range(0, len(chunk), size):
            yield chunk[start : start + size]
