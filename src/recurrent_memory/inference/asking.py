"""Questions to a memory: the text is folded, the question stands in a fresh segment, the answer is what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..backbones.encoder import EncoderBackbone
from ..backbones.seq2seq import Seq2SeqBackbone
from ..errors import ConfigError, GenerationError, InputError
from ..state import MemoryState
from .detokenize import eos_ids
from .reader import evaluating

if TYPE_CHECKING:
    from ..model import RecurrentMemoryModel


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered.

    Args:
        question: What was asked.
        text: The answer, stripped, up to the end of its line.
        probability: The product of the probabilities of its tokens, that of the end not included. Where the model
            answered nothing, the probability of that.
        token_ids: Its tokens.
    """

    question: str
    text: str
    probability: float
    token_ids: tuple[int, ...]


def ask(
    model: RecurrentMemoryModel,
    tokenizer: Any,
    state: MemoryState,
    questions: Sequence[str],
    *,
    max_new_tokens: int = 16,
) -> list[Answer]:
    """Ask a memory, all questions at once.

    What is pending is folded first; the questions change nothing in the state. A decoder's answers are decoded greedily
    over the full vocabulary, until the model ends the text or the line. An encoder that classifies answers with the name
    of the likeliest class.

    Args:
        model: The decoder, or the classifier, that wrote the state.
        tokenizer: Its tokenizer.
        state: What was read. Of one row: it is asked every question. Of several: there is one question for all rows, or one for
            each.
        questions: In words.
        max_new_tokens: The longest answer.

    Returns:
        The answers, in the order of the questions (of the rows, where there is one question).

    Raises:
        InputError: if a question is empty or longer than a segment, or the numbers of rows and questions do not fit.
        GenerationError: if the model neither writes text nor classifies.
        StateModelMismatchError: if another model wrote the state.

    Example:
        >>> ask(model, tokenizer, state, ["Where is Mary?"])[0].text
        'garden'
    """
    classifies = isinstance(model.view, EncoderBackbone) and model.view.classifies
    if isinstance(model.view, EncoderBackbone | Seq2SeqBackbone) and not classifies:
        raise GenerationError(
            f"a model of the family {model.view.family!r} is not asked in words; use forward for its task, or a decoder"
        )
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens!r} must be an int of at least 1")
    if isinstance(questions, str):
        questions = [questions]
    model.check_state(state)
    ids = [question_ids(model, tokenizer, question) for question in questions]
    texts, rows = _pair(len(ids), state.batch_size)
    if not texts:
        return []
    with evaluating(model):
        folded = fold(model, state).index(rows)
        if classifies:
            return _classify(model, folded, [questions[text] for text in texts], [ids[text] for text in texts])
        decoded = _decode(
            model, folded, [ids[text] for text in texts], _Endings(tokenizer, eos_ids(model, tokenizer)), max_new_tokens
        )
    return [
        Answer(questions[text], _text_of(tokenizer, tokens), probability, tuple(tokens))
        for text, (tokens, probability) in zip(texts, decoded, strict=True)
    ]


@torch.no_grad()
def _classify(
    model: RecurrentMemoryModel, state: MemoryState, questions: list[str], ids: list[list[int]]
) -> list[Answer]:
    input_ids, mask = _left_padded(ids, model.device)
    logits = model(input_ids=input_ids, attention_mask=mask, memory_state=state).logits
    best, classes = _best(logits)
    names: dict[Any, str] = dict(model.backbone.config.id2label or {})
    return [
        Answer(question, names.get(number, str(number)), float(log_probability.exp()), ())
        for question, number, log_probability in zip(questions, classes.tolist(), best, strict=True)
    ]


def question_ids(model: RecurrentMemoryModel, tokenizer: Any, question: str) -> list[int]:
    """The tokens of a question, which have to fit a segment.

    Raises:
        InputError: if they do not, or there are none.
    """
    if not isinstance(question, str):
        raise InputError(f"a question is a str, not {type(question).__name__}")
    ids: list[int] = tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"]
    length = model.memory_config.segment_length
    if not question.strip() or not ids:
        raise InputError('the question is empty; ask something, such as "Where is Mary?"')
    if len(ids) > length:
        raise InputError(
            f"the question has {len(ids)} tokens, more than a segment of this model holds ({length}); ask a shorter one, or "
            "read it with the text (`rmt read QUESTION.txt --append-to STATE`)"
        )
    return ids


@torch.no_grad()
def fold(model: RecurrentMemoryModel, state: MemoryState) -> MemoryState:
    """`model.fold` without gradients."""
    return model.fold(state)


def _pair(questions: int, rows: int) -> tuple[list[int], list[int]]:
    """Which question is put to which row."""
    if rows == 1:
        return list(range(questions)), [0] * questions
    if questions == 1:
        return [0] * rows, list(range(rows))
    if questions == rows:
        return list(range(rows)), list(range(rows))
    raise InputError(
        f"{questions} questions for a state of {rows} texts; ask all texts one question, or each its own, "
        "or choose a text: state[0]"
    )


@dataclass(frozen=True, slots=True)
class _Endings:
    """Where an answer ends."""

    tokenizer: Any
    eos: frozenset[int]

    def ends(self, token: int) -> tuple[bool, bool]:
        """Whether the answer ends with this token, and whether the token belongs to it."""
        if token in self.eos:
            return True, False
        line, newline, _ = _decoded(self.tokenizer, [token]).partition("\n")
        return bool(newline), not newline or bool(line.strip())


@torch.no_grad()
def _decode(
    model: RecurrentMemoryModel, state: MemoryState, questions: list[list[int]], endings: _Endings, max_new_tokens: int
) -> list[tuple[list[int], float]]:
    """Greedy answers of all rows, a token a step; rows that have ended leave the batch."""
    answers: list[list[int]] = [[] for _ in questions]
    log_probability = [0.0] * len(questions)
    input_ids, mask = _left_padded(questions, model.device)
    going = list(range(len(questions)))
    for _ in range(max_new_tokens):
        out = model(input_ids=input_ids, attention_mask=mask, memory_state=state, logits_to_keep=1)
        best, tokens = _best(out.logits[:, -1])
        kept: list[int] = []
        for position, row in enumerate(going):
            token = int(tokens[position])
            ended, belongs = endings.ends(token)
            if belongs:
                answers[row].append(token)
            if belongs or not answers[row]:
                log_probability[row] += float(best[position])
            if not ended:
                kept.append(position)
        if not kept:
            break
        going = [going[position] for position in kept]
        state = out.memory_state.index(kept)
        input_ids, mask = tokens[kept][:, None], None
    return [(ids, min(1.0, float(torch.tensor(p).exp()))) for ids, p in zip(answers, log_probability, strict=True)]


def _best(logits: Float[Tensor, "B V"]) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
    if not bool(torch.isfinite(logits).all()):
        raise GenerationError(f"the model's logits are NaN or infinite (dtype {logits.dtype}); use --dtype float32")
    return torch.log_softmax(logits.double(), -1).max(-1)


def _left_padded(rows: list[list[int]], device: torch.device) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    return _decoded(tokenizer, ids).partition("\n")[0].strip()
