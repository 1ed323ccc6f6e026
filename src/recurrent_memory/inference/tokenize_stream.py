"""Token ids of a text of any length, in constant memory, exactly as if the whole text were tokenized at once.

A *window* of the text is encoded at a time. It begins a little before the first token that is not known yet, at a
known token boundary; the known tokens of this overlap must come out again, which absorbs what a tokenizer does at the
beginning of its input (a prefixed `▁`, an added space) and proves that window and whole text are in step. Of the new
tokens, those up to a *cut* are emitted: a token boundary that no text which may follow can move.

Why a cut holds:

- **Between words** (pre-tokens). A pre-tokenizer goes through the text from left to right and looks ahead no further
  than to the end of a run of one class of characters. After the cut there are two more words and something other than
  white space, and the window is encoded again with other ends and with adverse continuations: nothing may change.
- **Inside a word** (BPE without pre-tokenizer, or a run of a million letters). BPE applies the merge of the lowest
  rank first, so, where the tokens of `xy` have a boundary between x and y, `BPE(xy) = BPE(x) + BPE(y)`; and whether two
  sequences of tokens can stand side by side depends on the two tokens that touch. The whole text has a boundary at one
  of the last `longest` positions of the window, `longest` being the length of the longest token. The cut is one that
  *all* these ends agree on. Other models (Unigram, WordPiece) are never cut inside a word.

A stretch without end that is one token or none (WordPiece makes a long word one unknown token) is shortened in the
middle, if no encoding notices. Where no cut is found the window grows, up to `MAX_WINDOW_CHARS`; then it is an error,
never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from recurrent_memory.errors import InputError

from .token_window import KnownToken, WindowEncoder, WindowTokens, may_begin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCK_CHARS = 16384
"""How much text is encoded at a time. On the way each token takes some hundreds of bytes, with its word and its place.

With 65,536 tokenizing takes an eighth less time, and the process up to 36 MB more. Not all of that at once: the block
with the most tokens and words in it sets the peak, and the longer the text, the likelier is a bad one."""

MAX_WINDOW_CHARS = 1 << 22
"""Where no stable token boundary is found in so many characters, the text cannot be streamed."""

_CONTINUATIONS = ("a", "1", ".", "'s", " ", "\n", " \n", "\u0301", "\u0323")
"""What may follow a window: a character of every class, an end of line, marks above and below the letter before."""

_ANCHORS = ("", "\n", "␞", "a", ".")
"""What may be put before a window, so that a prefix added by the tokenizer does not touch the text."""

_TAIL_CHARS = 32
"""The end of a window that is encoded again begins so many characters before the cut; a cut is as far from the end."""


def stream_token_ids(
    tokenizer: PreTrainedTokenizerBase, chunks: Iterable[str], *, block_chars: int = BLOCK_CHARS
) -> Iterator[list[int]]:
    """Yield lists of token ids that together are `tokenizer(text, add_special_tokens=False)["input_ids"]`.

    `text` is the concatenation of `chunks`, which may be cut anywhere and be of any length. Memory does not depend on
    the length of the text, for a fast tokenizer; a slow one (without offsets) needs the whole text at once.

    Args:
        block_chars: how much text to encode at a time. More is needed only where the tokenizer's decisions reach
            further than that.

    Raises:
        InputError: no token boundary in `MAX_WINDOW_CHARS` characters is certain: this tokenizer cannot stream this
            text exactly. Or `block_chars` is not positive.

    Example:
        >>> chunks = ["Mary went to the gar", "den."]
        >>> ids = [i for block in stream_token_ids(tokenizer, chunks) for i in block]  # doctest: +SKIP
    """
    return TokenStreamer(tokenizer, block_chars=block_chars).stream(chunks)


class TokenStreamer:
    """`stream_token_ids` for many texts: what has to be known of the tokenizer is found out once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, block_chars: int = BLOCK_CHARS) -> None:
        if block_chars < 1:
            raise InputError(
                f"block_chars={block_chars} is not a positive number of characters; the default is {BLOCK_CHARS}"
            )
        self.tokenizer = tokenizer
        self.block_chars = block_chars
        self._encoder = WindowEncoder.of(tokenizer)

    def stream(self, chunks: Iterable[str]) -> Iterator[list[int]]:
        """Yield the token ids of one text, block by block; see `stream_token_ids`."""
        if self._encoder is not None:
            return _Stream(self._encoder, _pieces(chunks, self.block_chars), self.block_chars).run()
        ids: list[int] = self.tokenizer("".join(chunks), add_special_tokens=False, verbose=False)["input_ids"]
        return (ids[i : i + self.block_chars] for i in range(0, len(ids), self.block_chars))


class _Stream:
    """One text on its way. Positions are those in the text, of which the buffer holds the characters from `base` on."""

    def __init__(self, encoder: WindowEncoder, pieces: Iterator[str], block_chars: int) -> None:
        self.encoder = encoder
        self.pieces = pieces
        self.block_chars = block_chars
        self.target = block_chars  # unknown characters wanted in the window
        self.buffer = ""
        self.base = 0
        self.done = 0  # the tokens before it are emitted
        self.known: list[KnownToken] = []  # the last of these
        self.anchor = ""  # the one that worked last
        self.num_dropped = 0  # characters that were taken out of the text, see _shorten
        self.continuations = _CONTINUATIONS + encoder.strip_before

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

    @property
    def end(self) -> int:
        """The position up to which the text was read."""
        return self.base + len(self.buffer)

    def _text(self, start: int, end: int | None = None) -> str:
        return self.buffer[start - self.base : None if end is None else end - self.base]

    def _fill(self) -> bool:
        """Read on; whether the text has ended."""
        parts = [self.buffer]
        missing = max(1, self.target - (self.end - self.done))
        for piece in self.pieces:
            parts.append(piece)
            missing -= len(piece)
            if missing <= 0:
                break
        self.buffer = "".join(parts)
        return missing > 0

    # The beginning of a window

    def _window(self) -> tuple[WindowTokens, int]:
        """Encode the text from some way before `done`: its tokens, and the index of the first that is not known."""
        for left, anchor in self._window_starts():
            tokens = next(self.encoder.tokens([self._text(left)], left, anchor))
            overlap = [token for token in self.known if token.start >= (left + self.done) // 2]
            first = tokens.index_after(overlap or self.known[-1:], self.done)
            if first is not None:
                self.anchor = anchor
                return tokens, first
        raise self._cannot("does not repeat its own tokens when it begins in the middle of the text")

    def _window_starts(self) -> Iterator[tuple[int, str]]:
        """Where a window may begin, and with what before it."""
        if self.base == 0:
            yield 0, ""
            return
        for distance in (1, 2, 4):
            left = self._known_start(self.done - distance * self.encoder.context)
            yield from ((left, anchor) for anchor in self._anchors())

    def _anchors(self) -> list[str]:
        return [self.anchor, *(anchor for anchor in _ANCHORS if anchor != self.anchor)]

    def _known_start(self, position: int) -> int:
        """The last known token boundary up to `position`, at the beginning of a word if there is one."""
        before = [token for token in self.known if token.start <= position] or self.known[:1]
        fit = [token for token in before if token.is_boundary and may_begin(self.buffer, token.start - self.base)]
        words = [token for token in fit if token.is_word_start]
        return (words or fit or before)[-1].start

    # The cut

    def _find_cut(self, tokens: WindowTokens, first: int) -> int | None:
        """Index of a token such that those before it are certain whatever follows, as far on as can be."""
        if len(tokens) - first < 2:
            return None
        end = self.end
        for cut in self._cuts_between_words(tokens, first):
            ends = [end, end - 1, end - 2, end - 3, (tokens.start(cut) + end) // 2]
            if self._is_stable(tokens, cut, ends, self.encoder.context):
                return cut
        if self.encoder.is_local:
            for cut in self._cuts_inside_words(tokens, first):
                # Of a text that is normalized, or of unknown characters, a token may be longer than in the vocabulary.
                longest = max(self.encoder.longest, *(last - start for start, last in tokens.spans[cut:]))
                ends = range(end, end - longest, -1)
                if self._word_is_stable(tokens, first, cut) and self._is_stable(tokens, cut, ends, _TAIL_CHARS):
                    return cut
        return None

    def _cuts_between_words(self, tokens: WindowTokens, first: int) -> Iterator[int]:
        """Beginnings of words, further and further from the end of the window; after each there is more than space."""
        if tokens.words[first] == tokens.words[-1]:
            return
        num_chars = len(self._text(self.done, self.end - self.encoder.reach).rstrip())
        limit = min(self.done + num_chars - 1, self.end - max(_TAIL_CHARS, self.encoder.reach + 1))
        cut: int | None = len(tokens)
        while limit > self.done and cut is not None:
            last = min(tokens.last_at(limit), cut - 1)
            words = (i for i in range(last, first, -1) if tokens.is_word_start(i) and tokens.num_words_after(i) >= 2)
            cut = self._best_cut(tokens, words)
            if cut is not None:
                yield cut
            limit = self.end - 4 * (self.end - limit)

    def _cuts_inside_words(self, tokens: WindowTokens, first: int) -> Iterator[int]:
        """Token boundaries further and further from the end of the window, none very far, as they are dear to check."""
        margin = self.encoder.longest + _TAIL_CHARS
        for distance in (margin, 2 * margin, 4 * margin, 8 * margin):
            last = tokens.last_at(self.end - distance)
            cut = self._best_cut(tokens, (i for i in range(last, first, -1) if tokens.is_boundary(i)))
            if cut is not None and self.end - tokens.start(cut) <= 16 * margin:
                yield cut

    def _best_cut(self, tokens: WindowTokens, cuts: Iterator[int]) -> int | None:
        """The first of the cuts that has white space on one side, unless that is far from the first of all."""
        best: int | None = None
        for i in cuts:
            best = i if best is None else best
            if best - i > 64:
                return best
            position = tokens.start(i) - self.base
            if self.buffer[position - 1].isspace() != self.buffer[position].isspace():
                return i
        return best

    def _word_is_stable(self, tokens: WindowTokens, first: int, cut: int) -> bool:
        """Whether the word that `cut` is in begins where it seems to, however the window goes on."""
        start = cut
        while start > first and not tokens.is_word_start(start):
            start -= 1
        if start == first:
            return True  # an earlier window saw the beginning of the word
        end = min(self.end, tokens.start(start) + 4 * self.encoder.context)
        return self._is_stable(tokens, start, [end, end - 1, end - 2, end - 3], self.encoder.context)

    def _is_stable(self, tokens: WindowTokens, cut: int, ends: Sequence[int], context: int) -> bool:
        """Whether the tokens before `cut` stay the same when the text stops at any of `ends`, or goes on otherwise."""
        position = tokens.start(cut)
        left = tokens.start(self._tail_start(tokens, cut, position - context, context))
        known = tokens.known(min(tokens.first_at((left + position) // 2), cut - 1), cut)
        tails = [self._text(left, end) for end in ends if end > position]
        tails += [tails[0] + continuation for continuation in self.continuations]
        anchors = [""] if left == 0 else self._anchors()
        for anchor in anchors:
            if self._all_repeat(known, position, tails[:1], left, anchor):
                return self._all_repeat(known, position, tails[1:], left, anchor)
        return False

    def _all_repeat(self, known: list[KnownToken], position: int, tails: list[str], left: int, anchor: str) -> bool:
        """Whether every tail has the same tokens up to `position`."""
        return all(t.index_after(known, position) is not None for t in self.encoder.tokens(tails, left, anchor))

    def _tail_start(self, tokens: WindowTokens, cut: int, position: int, context: int) -> int:
        """Index of a token, at `position` or a little before it, that a window may begin with."""
        begin = tokens.first_at(tokens.left)  # not in the anchor
        last = min(tokens.last_at(position), cut - 1)
        stop = max(begin, min(last, tokens.first_at(position - context)) - 1)
        cuts = [i for i in range(last, stop, -1) if tokens.is_boundary(i)]
        fit = [i for i in cuts if may_begin(self.buffer, tokens.start(i) - self.base)]
        words = [i for i in fit if tokens.is_word_start(i)]
        return (words or fit or cuts or [begin])[0]

    # Going on

    def _advance(self, tokens: WindowTokens, first: int, cut: int) -> None:
        """Take the tokens up to `cut` as known, and forget the text that no window will need again."""
        self.done = tokens.start(cut)
        horizon = self.done - 6 * self.encoder.context
        begin = tokens.last_at(horizon)
        if begin > first:
            self.known = tokens.known(begin, cut)
        else:
            known = [*self.known, *tokens.known(first, cut)]
            self.known = [token for token in known[:-1] if token.end > horizon] + known[-1:]
        base = self.known[0].start if horizon > 0 else 0
        self.buffer, self.base = self._text(base), base
        self.target = self.block_chars

    def _widen(self, tokens: WindowTokens) -> None:
        """No cut was found: want more text, or make room where one token or none covers a long stretch."""
        if self._shorten(tokens):
            return
        num_chars = self.end - self.done
        if num_chars >= MAX_WINDOW_CHARS:
            raise self._cannot(f"leaves no token boundary certain in {num_chars} characters")
        self.target = min(2 * max(self.target, num_chars), MAX_WINDOW_CHARS)

    def _shorten(self, tokens: WindowTokens) -> bool:
        """Drop the middle of a last token, or of a gap after it, that is very long, if no encoding notices."""
        keep = max(1024, 8 * self.encoder.longest)
        last = len(tokens) - 1
        stretches = [(self.done, self.end)]
        if last >= 0 and tokens.end(last) > self.done:
            stretches = [(tokens.start(last), tokens.end(last)), (tokens.end(last), self.end)]
        start, end = max(stretches, key=lambda stretch: stretch[1] - stretch[0])
        if end - start <= 4 * keep:
            return False
        shorter = self._text(self.base, start + keep) + self._text(end - keep)
        ids = self.encoder.ids
        if any(ids(self.buffer + more) != ids(shorter + more) for more in ("", "a", " a", ".")):
            return False
        self.num_dropped += len(self.buffer) - len(shorter)
        self.buffer = shorter
        return True

    def _cannot(self, why: str) -> InputError:
        return InputError(
            f"the tokenizer {self.encoder.name!r} cannot be streamed: "
            f"near character {self.done + self.num_dropped} it {why}; "
            "tokenize the whole text at once and pass the token ids"
        )


def _pieces(chunks: Iterable[str], size: int) -> Iterator[str]:
    """The chunks, those cut that are longer than `size`."""
    for chunk in chunks:
        for start in range(0, len(chunk), size):
            yield chunk[start : start + size]
