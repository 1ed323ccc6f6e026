"""Reading texts of any length into a memory, in constant RAM, so that nothing is lost when it is interrupted."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor, nn

from ..errors import ConfigError, InputError, OutputError, SourceChangedError
from ..state import MemoryState
from .journal import Conditions, Interrupted, Journal
from .lanes import Lanes, check_finite
from .peak_memory import peak_rss_mb
from .progress import Progress, make_progress
from .schedule import AUTO, checked_schedule, chosen_schedule
from .token_feed import TokenFeed
from .token_source import TokenSource
from .tokenize_stream import TokenStreamer

if TYPE_CHECKING:
    from ..model import RecurrentMemoryModel

_log = logging.getLogger("recurrent_memory")

TOKENS_PER_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class ReadingStats:
    """What a reading did.

    Args:
        tokens: Tokens of the text, those of an interrupted reading before included.
        segments: Segments that they are.
        seconds: Wall-clock time of this run, all told.
        tokens_per_s: Tokens that this run read, in a second of reading: checking and skipping are not counted.
        peak_rss_mb: The most memory that the process has had, in 10^6 bytes.
        state_bytes: The size of the memory, and what is pending.
        resumed_at: Tokens that an interrupted reading had read.
    """

    tokens: int
    segments: int
    seconds: float
    tokens_per_s: float
    peak_rss_mb: float
    state_bytes: int
    resumed_at: int = 0


@dataclass(frozen=True, slots=True)
class _Point:
    """How far a reading is. Replaced as a whole, so that an interruption finds state, count and hash in step."""

    state: MemoryState
    tokens: int
    digest: Any

    def after(self, state: MemoryState, block: Int[Tensor, " T"]) -> _Point:
        return _Point(state, self.tokens + block.numel(), hashed(self.digest, block))


def hashed(digest: Any, block: Int[Tensor, " T"]) -> Any:
    """The digest, gone on with over a block of token ids; the one given is left as it is."""
    digest = digest.copy()
    digest.update(block.numpy().astype("<i8", copy=False).tobytes())
    return digest


class MemoryReader:
    """Reads texts into memory states.

    A *source* is a file, a folder, a `.gz` file or `-` (standard input), by its name; a list of those; an iterable of
    pieces of text; or token ids: an iterable of ints or of chunks of ints. Text is tokenized on the way, exactly as if
    it were tokenized at once. That, and drawing on an iterator, is done by a thread of its own, a little ahead of the
    model; RAM does not grow with the text.

    Args:
        model: The model; it is put into evaluation mode while it reads.
        tokenizer: Its tokenizer. Not needed to read token ids.
        progress: Whether to show tokens, tokens/s and time left on stderr.
        save_every_s: Seconds between two saves of an unfinished reading.
        tokens_per_block: Tokens that the model is given at a time (rounded to whole segments, at least one).
        schedule: See `RecurrentMemoryModel.read`. `auto` measures where there is a block of tokens or more to read, once for a
            model; what it finds faster is kept to through a reading, its resumption included. `sequential` for a memory that is
            the same in its last digits whatever else the machine does. Texts in lanes are read one segment after the other.
        notify: Gets a line where something is found that a person should know; by default it is logged.

    Example:
        >>> reader = MemoryReader(model, tokenizer)
        >>> state = reader.read("book.txt", out="book.safetensors")
        >>> reader.stats.tokens_per_s
    """

    def __init__(
        self,
        model: RecurrentMemoryModel,
        tokenizer: Any = None,
        *,
        progress: bool = False,
        save_every_s: float = 60.0,
        tokens_per_block: int = TOKENS_PER_BLOCK,
        schedule: str = AUTO,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        if not save_every_s >= 0:
            raise ConfigError(f"save_every_s={save_every_s!r} must be a number of seconds of at least 0")
        if isinstance(tokens_per_block, bool) or not isinstance(tokens_per_block, int) or tokens_per_block < 1:
            raise ConfigError(f"tokens_per_block={tokens_per_block!r} must be an int of at least 1")
        self.model = model
        self.tokenizer = tokenizer
        self.progress = progress
        self.save_every_s = save_every_s
        self._segment_length = length = model.memory_config.segment_length
        self.tokens_per_block = max(1, tokens_per_block // length) * length
        self.schedule = checked_schedule(schedule)
        self.notify: Callable[[str], None] = notify or _log.info
        self._stats: ReadingStats | None = None
        self._streamer = TokenStreamer(tokenizer) if tokenizer is not None else None

    @property
    def stats(self) -> ReadingStats:
        """What the last `read` did.

        Raises:
            InputError: if nothing has been read.
        """
        if self._stats is None:
            raise InputError("nothing has been read yet; call read first")
        return self._stats

    # ------------------------------------------------------------------ one text

    def read(
        self,
        source: Any,
        *,
        out: str | Path | None = None,
        resume: bool = False,
        append_to: str | Path | MemoryState | None = None,
        force: bool = False,
        encoding: str = "utf-8",
        metadata: Mapping[str, str] | None = None,
        expected_tokens: int | None = None,
    ) -> MemoryState:
        """Read one text.

        Args:
            source: See the class.
            out: A file for the state. On the way, the reading is kept in `OUT.partial`.
            resume: Go on with the reading that `OUT.partial` holds. The text is tokenized from its beginning, to see
                that it is the same. The state is then the same, bit for bit, as if there had been no interruption.
                Where `out` is the finished reading of this text already, it is returned.
            append_to: A state, or its file, to read on from. `out` may be the same file.
            force: Overwrite `out`, and give up an interrupted reading of it.
            encoding: Of the text files.
            metadata: Further strings to keep in the state file.
            expected_tokens: How long the text is, if that is known, for the time left.

        Returns:
            The state (of one row) after the text.

        Raises:
            InputError: if the text is missing, empty, binary or wrongly encoded; SourceChangedError where it is not the
                one that an interrupted reading began with.
            StateError: if a state is damaged or another model's.
            OutputError: if `out` exists, or cannot be written. What was saved before stays whole.
            KeyboardInterrupt: after Ctrl-C, when the reading has been saved; its text says how to go on.
        """
        started = time.perf_counter()
        text = TokenSource(source, self._streamer, encoding, self.model.view, expected_tokens)
        journal = self._journal(text, out, append_to, metadata)
        if journal is not None:
            if resume and (done := journal.finished()) is not None:
                self.model.check_state(done, where=str(out))
                tokens = journal.record.tokens
                self._finish_stats(started, done, tokens, -(-tokens // self._segment_length), tokens, 0.0)
                return done.to(self.model.device, self.model.memory_dtype)
            journal.check_free(resume, force)
        elif resume:
            raise ConfigError("resume=True needs out=…, the file whose unfinished reading is to be gone on with")
        base = self._base(append_to)
        kept = _advising(journal)
        with kept, closing(text.feed()) as feed, showing(self.progress) as bar, evaluating(self.model):
            if self.schedule != AUTO:
                chosen_schedule(self.model, self.schedule, self.tokens_per_block // self._segment_length)
            conditions = Conditions.of(self.model, self.tokens_per_block, self.schedule)
            interrupted = journal.interrupted(self.model, conditions) if journal is not None and resume else None
            point = _Point(base, 0, hashlib.sha256())
            if interrupted is not None:
                then = interrupted.conditions
                conditions = replace(conditions, tokens_per_block=then.tokens_per_block, schedule=then.schedule)
                point = self._skip(feed, base, interrupted)
                bar.update(point.tokens, text.fraction(point.tokens))
            resumed_at, began = point.tokens, time.perf_counter()
            point = self._read_on(feed, point, text, journal, conditions, bar)
            reading_s = time.perf_counter() - began
        if not point.tokens:
            raise InputError(f"{text.name}: there is no text in it; give a text of at least one token")
        state = point.state
        if journal is not None:
            journal.finish(state, point.tokens, point.digest.hexdigest())
        segments = self._segments(state) - self._segments(base)
        self._finish_stats(started, state, point.tokens, segments, resumed_at, reading_s)
        return state

    def _journal(
        self, text: TokenSource, out: str | Path | None, append_to: Any, metadata: Mapping[str, str] | None
    ) -> Journal | None:
        if out is None:
            return None
        base = append_to if append_to is None or isinstance(append_to, MemoryState) else Path(append_to)
        return Journal(Path(out), text.identity(), base, metadata or {}, self.notify)

    def _base(self, append_to: str | Path | MemoryState | None) -> MemoryState:
        if append_to is None:
            return self.model.initial_state()
        if isinstance(append_to, MemoryState):
            state = append_to
            self.model.check_state(state, where="append_to")
        else:
            state = MemoryState.load(append_to, model=self.model)
        if state.batch_size != 1:
            raise InputError(f"append_to holds {state.batch_size} texts; choose one of them: state[0]")
        return state

    def _skip(self, feed: TokenFeed, base: MemoryState, interrupted: Interrupted) -> _Point:
        """Go through what was read before, to see that it is what was read before."""
        record, digest, missing = interrupted.record, hashlib.sha256(), interrupted.record.tokens
        while missing and (block := feed.take(min(missing, TOKENS_PER_BLOCK))).numel():
            digest = hashed(digest, block)
            missing -= block.numel()
        if missing or digest.hexdigest() != record.ids_sha256:
            what = f"it ends after {record.tokens - missing:,} tokens" if missing else "its tokens are others"
            raise SourceChangedError(
                f"the text is not the one whose first {record.tokens:,} tokens were read before the interruption: {what} "
                "(did the text, its encoding or the tokenizer change?); give the same text, or start again with --force"
            )
        if int(interrupted.state.tokens_read[0]) != int(base.tokens_read[0]) + record.tokens:
            raise SourceChangedError("the interrupted reading does not go on from this state; start again with --force")
        self.notify(f"Resuming after {record.tokens:,} tokens.")
        return _Point(interrupted.state, record.tokens, digest)

    def _read_on(
        self,
        feed: TokenFeed,
        point: _Point,
        text: TokenSource,
        journal: Journal | None,
        conditions: Conditions,
        bar: Progress,
    ) -> _Point:
        saved_at = time.monotonic()
        try:
            while (block := feed.take(conditions.tokens_per_block)).numel():
                if conditions.schedule == AUTO:
                    conditions = replace(conditions, schedule=self._faster_schedule(block.numel()))
                point = point.after(self._read_block(block, point.state, point.tokens, conditions.schedule), block)
                bar.update(point.tokens, text.fraction(point.tokens))
                if journal is not None and time.monotonic() - saved_at >= self.save_every_s:
                    journal.save_partial(point.state, point.tokens, point.digest.hexdigest(), conditions)
                    saved_at = time.monotonic()
        except KeyboardInterrupt:
            if journal is None or not point.tokens:
                raise
            try:
                journal.save_partial(point.state, point.tokens, point.digest.hexdigest(), conditions)
            except OutputError as error:
                raise KeyboardInterrupt(f"interrupted, and the reading could not be saved: {error}") from None
            raise KeyboardInterrupt(
                f"interrupted after {point.tokens:,} tokens, which are kept in '{journal.partial}'; "
                "go on with the same command and --resume"
            ) from None
        return point

    def _faster_schedule(self, tokens: int) -> str:
        """For a text whose first block has so many tokens; one that is shorter than a block is not worth a measurement."""
        if tokens < self.tokens_per_block:
            return "sequential"
        return chosen_schedule(self.model, AUTO, tokens // self._segment_length)

    def _read_block(
        self, block: Int[Tensor, " T"], state: MemoryState, tokens_before: int, schedule: str
    ) -> MemoryState:
        state = self.model.read(block[None], memory_state=state, schedule=schedule)
        check_finite(state, f"after {tokens_before + block.numel():,} tokens", self.model)
        return state

    def _segments(self, state: MemoryState) -> int:
        return int(state.segments_folded[0]) + int(state.pending_lengths[0] > 0)

    def _finish_stats(
        self, started: float, state: MemoryState, tokens: int, segments: int, resumed_at: int, reading_s: float
    ) -> None:
        self._stats = ReadingStats(
            tokens=tokens,
            segments=segments,
            seconds=time.perf_counter() - started,
            tokens_per_s=(tokens - resumed_at) / max(reading_s, 1e-9),
            peak_rss_mb=peak_rss_mb(),
            state_bytes=state.num_bytes,
            resumed_at=resumed_at,
        )

    # ------------------------------------------------------------------ many texts

    def read_many(
        self, texts: Iterable[Any], lanes: int = 16, *, encoding: str = "utf-8"
    ) -> Iterator[tuple[int, MemoryState]]:
        """Read many texts at once, side by side; as one ends, the next takes its lane.

        Each state is the one that reading that text alone gives, up to the last digits (1e-5 relative in float32):
        what a row is batched with does not matter.

        Args:
            texts: Sources, see the class. Taken one by one, as lanes are free.
            lanes: How many texts at a time.
            encoding: Of the text files.

        Returns:
            Pairs of a text's number, from 0, and its state (of one row), in the order in which the texts end.

        Raises:
            ConfigError: if `lanes` is not a positive int.
            InputError: if a text cannot be read, or is empty.
        """
        if isinstance(lanes, bool) or not isinstance(lanes, int) or lanes < 1:
            raise ConfigError(f"lanes={lanes!r} must be an int of at least 1")
        return self._read_lanes(texts, lanes, encoding)

    def _read_lanes(self, texts: Iterable[Any], lanes: int, encoding: str) -> Iterator[tuple[int, MemoryState]]:
        view = self.model.view
        feeds = (
            (number, TokenSource(source, self._streamer, encoding, view).feed(in_background=False))
            for number, source in enumerate(texts)
        )
        with evaluating(self.model), showing(self.progress) as bar:
            yield from Lanes(self.model, feeds, lanes, bar).run()


@contextmanager
def _advising(journal: Journal | None) -> Generator[None]:
    """Where Ctrl-C comes while nothing is read, such as when what was read is skipped: say what is kept."""
    try:
        yield
    except KeyboardInterrupt as error:
        if error.args or journal is None or not journal.partial.exists():
            raise
        raise KeyboardInterrupt(
            f"interrupted; what was read before is kept in '{journal.partial}'; go on with the same command and --resume"
        ) from None


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Without dropout, and as it was afterwards."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


@contextmanager
def closing(feed: TokenFeed) -> Generator[TokenFeed]:
    """Stop the thread that makes the tokens, whatever happens."""
    try:
        yield feed
    finally:
        feed.close()


@contextmanager
def showing(wanted: bool, unit: str = "tokens") -> Generator[Progress]:
    """Show progress, and leave the terminal as it was."""
    bar = make_progress(wanted, unit)
    try:
        yield bar
    finally:
        bar.close()
