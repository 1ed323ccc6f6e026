"""What token memories compute, written for reading: one row at a time, one segment at a time, no padding, no batch.

These functions are slow and obvious. They call the backbone's own layers (its embedding layer, its body on exactly one
unpadded row of embeddings, its own head) and nothing of this library, so that everything fast can be compared with
them in float64: outputs, losses, memories, and through autograd every gradient.

Bulatov, Kuratov, Burtsev: Recurrent Memory Transformer, NeurIPS 2022 (arXiv:2207.06881), eq. 4–6; for encoders
Bulatov, Kuratov, Kapushev, Burtsev: Beyond Attention (arXiv:2402.04161), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORE = -100
Carry = Callable[[Tensor, Tensor], Tensor]
"""Makes the next memory of the hidden state at the write positions, and the memory before, `[M - R, D]` both."""


@dataclass(frozen=True)
class Reference:
    """What came of one text.

    Args:
        tensors: What is remembered after the last folded segment, without a batch axis; token memories: `memory`, `[M, D]`.
        pending: The token ids that are read but not folded.
        segments_folded: How many segments are in the memory.
        logits: Decoders and masked LM: `[T, V]`, for every token. Classification: `[num_labels]`. Encoder–decoders:
            `[T_out, V]`.
        loss_sum: The sum of the cross-entropies over the labels.
        num_labels: How many there were.
    """

    tensors: dict[str, Tensor]
    pending: list[int]
    segments_folded: int
    logits: Tensor | None = None
    loss_sum: Float[Tensor, ""] | None = None
    num_labels: int = 0


def hidden_carry(hidden: Tensor, memory: Tensor) -> Tensor:
    """The papers' form: the hidden state as it is."""
    return hidden


def sign_carry(hold: float) -> Carry:
    """+1 or -1; the gradient passes as if nothing had been done (straight-through estimator).

    A bit is turned over where the hidden state is more than `hold` on the other side.
    """

    def carry(hidden: Tensor, memory: Tensor) -> Tensor:
        held = hidden + hold * memory
        return held + (torch.where(held < 0, -1.0, 1.0) - held).detach()

    return carry


def norm_carry(scale: Float[Tensor, ""]) -> Carry:
    """Each memory token stretched or shrunk until the root of its mean square is `scale`."""

    def carry(hidden: Tensor, memory: Tensor) -> Tensor:
        tokens = [token * scale / torch.sqrt((token * token).sum() / len(token) + 1e-6) for token in hidden]
        return torch.stack(tokens) if tokens else hidden

    return carry


def gate_carry(initial: Float[Tensor, "M D"], gate: Float[Tensor, " D"]) -> Carry:
    """The first memory, and of the hidden state what each channel's gate lets through."""

    def carry(hidden: Tensor, memory: Tensor) -> Tensor:
        return torch.stack([initial[:, d] + gate[d] * hidden[:, d] for d in range(len(gate))], 1)

    return carry


def gated_norm_carry(initial: Float[Tensor, "M D"], gate: Float[Tensor, " D"], scale: Float[Tensor, ""]) -> Carry:
    """The first memory, and of the hidden state on the scale of embeddings what each channel's gate lets through."""
    stretched, through = norm_carry(scale), gate_carry(initial, gate)
    return lambda hidden, memory: through(stretched(hidden, memory), memory)


def first_carry(initial: Float[Tensor, "M D"]) -> Carry:
    """The first memory again."""
    return lambda hidden, memory: initial


@dataclass(frozen=True)
class Rules:
    """What becomes of a memory between segments.

    Args:
        carry: What of the hidden state goes on to the next segment.
        recent: R, memory tokens that are not written but are the last tokens read.
        read_slots: `[M, D]`, added to the memory where it is read; None: nothing.
        write_slots: `[W, D]`, W = M - R, added to it in a decoder's write block; None: nothing.
    """

    carry: Carry = hidden_carry
    recent: int = 0
    read_slots: Tensor | None = None
    write_slots: Tensor | None = None

    def read(self, memory: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """The read block."""
        return memory if self.read_slots is None else memory + self.read_slots

    def write(self, memory: Float[Tensor, "M D"]) -> Float[Tensor, "W D"]:
        """The write block."""
        written = memory[: len(memory) - self.recent]
        return written if self.write_slots is None else written + self.write_slots


PAPERS = Rules()
"""The papers' form."""


def cut(text: Sequence[int], segment_length: int) -> list[list[int]]:
    """Segments of S tokens, the last of 1…S; one empty segment where there is no text."""
    segments = [list(text[start : start + segment_length]) for start in range(0, len(text), segment_length)]
    return segments or [[]]


def mean_loss(references: Sequence[Reference]) -> Float[Tensor, ""]:
    """The loss of a batch: the mean over all labels of all texts."""
    total = sum(reference.loss_sum for reference in references if reference.loss_sum is not None)
    return torch.as_tensor(total) / sum(reference.num_labels for reference in references)


def next_memory(backbone: Any, hidden: Tensor, memory: Tensor, segment: Sequence[int], rules: Rules) -> Tensor:
    """What is written, and after it the embeddings of the last tokens: of the text, and of the memory where it is short."""
    written = len(hidden)
    recent = list(memory[written:])
    for token in segment:
        recent = [*recent, _embed(backbone, [token])[0]][1:] if recent else []
    return torch.stack([*rules.carry(hidden, memory[:written]), *recent]) if len(memory) else memory


# ---------------------------------------------------------------------- decoders: [M ; x ; M]


def decoder_fold(
    backbone: Any, memory: Float[Tensor, "M D"], segment: Sequence[int], rules: Rules = PAPERS
) -> tuple[Tensor, Tensor]:
    """One segment, read and remembered.

    Returns:
        The logits at the text, `[T, V]`, and the next memory, `[M, D]`.
    """
    size = memory.shape[0]
    row = torch.cat([rules.read(memory), _embed(backbone, segment), rules.write(memory)])
    hidden = _body(backbone, row)
    logits = _logits(backbone, row)
    return logits[size : size + len(segment)], next_memory(
        backbone, hidden[size + len(segment) :], memory, segment, rules
    )


def decoder_look(
    backbone: Any, memory: Float[Tensor, "M D"], segment: Sequence[int], rules: Rules = PAPERS
) -> Float[Tensor, "T V"]:
    """One segment, read and not remembered: the text never sees the write block, so it can be left out."""
    if not segment:
        return memory.new_zeros(0, _embedding(backbone).weight.shape[0])
    row = torch.cat([rules.read(memory), _embed(backbone, segment)])
    return _logits(backbone, row)[memory.shape[0] :]


def decoder(
    backbone: Any,
    memory: Float[Tensor, "M D"],
    text: Sequence[int],
    segment_length: int,
    labels: Sequence[int] | None = None,
    rules: Rules = PAPERS,
) -> Reference:
    """A text from its beginning.

    Args:
        backbone: The Hugging Face model.
        memory: `M_0`.
        text: Token ids.
        segment_length: S.
        labels: One for each token, -100 where there is no loss. Token t is predicted at t − 1, also where that is in
            the segment before.
        rules: What becomes of the memory between segments.
    """
    segments = cut(text, segment_length)
    pieces: list[Tensor] = []
    for segment in segments[:-1]:  # a segment is folded when another token follows it
        logits, memory = decoder_fold(backbone, memory, segment, rules)
        pieces.append(logits)
    pieces.append(decoder_look(backbone, memory, segments[-1], rules))
    all_logits = torch.cat(pieces)
    loss_sum, count = all_logits.sum() * 0.0, 0
    if labels is not None:
        for position in range(1, len(text)):
            if labels[position] != IGNORE:
                loss_sum = loss_sum + cross_entropy(all_logits[position - 1], torch.tensor(labels[position]))
                count += 1
    return Reference({"memory": memory}, segments[-1], len(segments) - 1, all_logits, loss_sum, count)


def decoder_generate(
    backbone: Any,
    memory: Float[Tensor, "M D"],
    text: Sequence[int],
    segment_length: int,
    max_new_tokens: int,
    rules: Rules = PAPERS,
) -> list[int]:
    """The likeliest next token, again and again; everything is computed anew for each."""
    text = list(text)
    for _ in range(max_new_tokens):
        logits = decoder(backbone, memory, text, segment_length, rules=rules).logits
        assert logits is not None
        text.append(int(logits[-1].argmax()))
    return text


# ---------------------------------------------------------------------- encoders: [CLS] M [SEP] x [SEP]


def encoder_row(
    backbone: Any, memory: Float[Tensor, "M D"], segment: Sequence[int], cls_id: int, sep_id: int
) -> Float[Tensor, "R D"]:
    """The input embeddings of a segment; without memory `[CLS] x [SEP]`."""
    if memory.shape[0] == 0:
        return _embed(backbone, [cls_id, *segment, sep_id])
    return torch.cat([_embed(backbone, [cls_id]), memory, _embed(backbone, [sep_id, *segment, sep_id])])


def encoder(
    backbone: Any,
    memory: Float[Tensor, "M D"],
    text: Sequence[int],
    segment_length: int,
    cls_id: int,
    sep_id: int,
    labels: Sequence[int] | int | None = None,
    rules: Rules = PAPERS,
) -> Reference:
    """A text from its beginning; the one block of memory is read and written.

    Args:
        backbone: The Hugging Face model. What its head is decides what the logits are.
        memory: `M_0`.
        text: Token ids, without special tokens.
        segment_length: S.
        cls_id: [CLS].
        sep_id: [SEP].
        labels: Masked LM: one for each token, not shifted. Classification: one for the text, judged by the last segment.
        rules: What becomes of the memory between segments.
    """
    size = memory.shape[0]
    text_start = 2 + size if size else 1
    segments = cut(text, segment_length)
    pieces: list[Tensor] = []
    output = torch.empty(0)
    for index, segment in enumerate(segments):
        row = encoder_row(backbone, rules.read(memory), segment, cls_id, sep_id)
        output = backbone(inputs_embeds=row[None]).logits[0]
        if index < len(segments) - 1:
            hidden = _body(backbone, row)[1 : 1 + size - rules.recent]
            memory = next_memory(backbone, hidden, memory, segment, rules)
        if output.ndim == 2:
            pieces.append(output[text_start : text_start + len(segment)])
    logits = torch.cat(pieces) if pieces else output
    loss_sum, count = logits.sum() * 0.0, 0
    if isinstance(labels, int):
        loss_sum, count = cross_entropy(logits, torch.tensor(labels)), 1
    elif labels is not None:
        for position, label in enumerate(labels):
            if label != IGNORE:
                loss_sum = loss_sum + cross_entropy(logits[position], torch.tensor(label))
                count += 1
    return Reference({"memory": memory}, segments[-1], len(segments) - 1, logits, loss_sum, count)


# ---------------------------------------------------------------------- encoder–decoders: [M ; x ; </s>]


def seq2seq(
    backbone: Any,
    memory: Float[Tensor, "M D"],
    text: Sequence[int],
    segment_length: int,
    eos_id: int,
    labels: Sequence[int] | None = None,
    rules: Rules = PAPERS,
) -> Reference:
    """A text from its beginning; the decoder attends to the encoder's output for the last segment, memory included.

    Args:
        backbone: The Hugging Face model.
        memory: `M_0`.
        text: Token ids, without special tokens.
        segment_length: S.
        eos_id: `</s>`.
        labels: What the decoder is to write; -100 where there is no loss.
        rules: What becomes of the memory between segments.
    """
    segments = cut(text, segment_length)
    encoded = torch.empty(0)
    for index, segment in enumerate(segments):
        row = torch.cat([rules.read(memory), _embed(backbone, [*segment, eos_id])])
        encoded = backbone.get_encoder()(inputs_embeds=row[None]).last_hidden_state
        if index < len(segments) - 1:
            memory = next_memory(backbone, encoded[0, : memory.shape[0] - rules.recent], memory, segment, rules)
    if labels is None:
        return Reference({"memory": memory}, segments[-1], len(segments) - 1)
    logits = backbone(encoder_outputs=(encoded,), labels=torch.tensor([labels])).logits[0]
    loss_sum, count = logits.sum() * 0.0, 0
    for position, label in enumerate(labels):
        if label != IGNORE:
            loss_sum = loss_sum + cross_entropy(logits[position], torch.tensor(label))
            count += 1
    return Reference({"memory": memory}, segments[-1], len(segments) - 1, logits, loss_sum, count)


# ---------------------------------------------------------------------- the backbone's own layers


def _embedding(backbone: Any) -> Any:
    return backbone.get_input_embeddings()


def _embed(backbone: Any, ids: Sequence[int]) -> Float[Tensor, "T D"]:
    return _embedding(backbone)(torch.tensor([ids], dtype=torch.long))[0]


def _body(backbone: Any, row: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
    return backbone.base_model(inputs_embeds=row[None]).last_hidden_state[0]


def _logits(backbone: Any, row: Float[Tensor, "R D"]) -> Float[Tensor, "R V"]:
    return backbone(inputs_embeds=row[None]).logits[0]
