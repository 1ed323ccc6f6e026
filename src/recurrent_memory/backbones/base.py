"""What a memory needs from a model, whatever its family: embed ids, run rows of embeddings, apply the head."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from ..errors import BackboneError
from .last_layer import Positions, is_possible, is_worth, take, trimmed


class Backbone(ABC):
    """A view of a loaded Hugging Face model. Holds no parameters of its own.

    A row that the model sees is `[prefix ; read block ; separator ; text ; suffix ; write block]`; a family says
    which special tokens stand where, and whether the write block is one of its own (`separate_write_block`, under a
    causal mask) or the read block itself (where attention goes both ways).

    Args:
        model: The Hugging Face model, with its head.
        prefix_ids: Token ids before the read block.
        separator_ids: Token ids between the read block and the text; left out where there is no memory.
        suffix_ids: Token ids after the text.
    """

    family: ClassVar[str]
    separate_write_block: ClassVar[bool]
    strips_special_tokens: ClassVar[bool] = False
    is_fast: bool = True  # whether shortcuts are taken that compute the same
    num_known: int = 0  # positions at a row's beginning that are not run again, see `continued`

    def __init__(
        self,
        model: PreTrainedModel,
        prefix_ids: tuple[int, ...] = (),
        separator_ids: tuple[int, ...] = (),
        suffix_ids: tuple[int, ...] = (),
    ) -> None:
        self.model = model
        self.body: PreTrainedModel = model.base_model  # pyright: ignore[reportAttributeAccessIssue]
        self.prefix_ids, self.separator_ids, self.suffix_ids = prefix_ids, separator_ids, suffix_ids

    @property
    def loss_type(self) -> str:
        """The loss, by transformers' name: `Trainer` asks it whether labels are shifted."""
        return "ForCausalLM"

    @property
    def config(self) -> PretrainedConfig:
        """The model's own configuration."""
        return self.model.config

    @property
    def vocab_size(self) -> int:
        """V, the rows of the embedding table."""
        return self.embedding.weight.shape[0]

    @property
    def embedding(self) -> nn.Embedding:
        """The module that turns token ids into input embeddings, scales included."""
        return self.model.get_input_embeddings()  # pyright: ignore[reportReturnType]

    @property
    def embedding_width(self) -> int:
        """D, the width of input embeddings and of last hidden states (OPT's `word_embed_proj_dim`)."""
        return self.embedding.weight.shape[1]

    @property
    def layer_width(self) -> int:
        """The width of the hidden states between layers (OPT's may be another than that of its embeddings)."""
        return self.config.get_text_config().hidden_size

    def layers(self) -> list[nn.Module]:
        """The transformer layers, first to last.

        Raises:
            BackboneError: if the model does not keep them in a list.
        """
        count = self.config.get_text_config().num_hidden_layers
        for module in self.model.base_model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return list(module)
        raise BackboneError(
            f"{type(self.model).__name__} has no list of its {count} layers, which a memory in every layer needs; "
            "take kind='tokens'"
        )

    def embed(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Input embeddings as the model makes them (scaled where it scales), without positions."""
        return self.embedding(input_ids)

    def embedding_std(self) -> float:
        """The standard deviation of the embedding layer's output, over at most 8,192 tokens of the vocabulary."""
        ids = torch.linspace(0, self.vocab_size - 1, min(self.vocab_size, 8192), device=self.embedding.weight.device)
        with torch.no_grad():
            return float(self.embed(ids.long()[None]).float().std())

    @abstractmethod
    def encode(self, rows: Float[Tensor, "B R D"], lengths: Int[Tensor, " B"] | None) -> Float[Tensor, "B R D"]:
        """The last hidden states, after the final norm, of rows of embeddings; the head is not run.

        Args:
            rows: Input embeddings.
            lengths: Positions of each row that are real, from the left; None where all are.
        """

    def encode_at(
        self, rows: Float[Tensor, "B R D"], lengths: Int[Tensor, " B"] | None, positions: Positions
    ) -> Float[Tensor, "B M D"]:
        """`encode`, where only some positions are wanted: what the last layer does at the others alone is left out.

        Args:
            rows: Input embeddings.
            lengths: See `encode`.
            positions: Those that are wanted, the same in all rows (a slice) or not.
        """
        backbone = self
        last = self._last_layer() if self.is_fast else None
        if last is not None and is_worth(last, rows, positions):
            backbone = copy.copy(self)
            backbone.body = trimmed(self.body, last, positions)
        return take(backbone.encode(rows, lengths), positions)

    def _last_layer(self) -> nn.Module | None:
        """The layer that need not run as a whole; None: it has to."""
        try:
            last = self.layers()[-1]
        except (BackboneError, IndexError):
            return None
        checkpoints = self.model.training and getattr(last, "gradient_checkpointing", False)
        return last if is_possible(last) and not checkpoints else None

    def continued(self, room: int) -> Backbone | None:
        """This backbone for one row that grows, of which it computes only what is new; None: it cannot.

        Args:
            room: Positions of the row at its longest.
        """
        del room
        return None

    def head(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """The logits of some last hidden states, through all that the model does after its body (caps, scales)."""
        return run_head(self.model, hidden)

    @abstractmethod
    def max_row_length(self) -> int | None:
        """The longest row that the backbone reads rightly, every position seeing every one it should; None: no limit."""

    def num_special_tokens(self, num_memory_tokens: int) -> int:
        """Special tokens in a row."""
        separators = len(self.separator_ids) if num_memory_tokens else 0
        return len(self.prefix_ids) + separators + len(self.suffix_ids)

    def special_ids(self) -> tuple[int, ...]:
        """Ids that are taken out of the input, because the row brings its own."""
        return ()


def check_finite(module: nn.Module) -> None:
    """Refuse a broken model.

    Raises:
        BackboneError: if a weight is NaN or infinite.
    """
    for name, parameter in module.named_parameters():
        if not parameter.is_meta and not bool(torch.isfinite(parameter).all()):
            raise BackboneError(
                f"the weights {name!r} hold NaN or infinity; the model is broken, load or train it again"
            )


class _GivenOutput(BaseModelOutputWithPastAndCrossAttentions):
    """What a head asks for besides the hidden states (caches, router logits) is not there."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class _Given(nn.Module):
    """Stands in for a model's body and returns the hidden states it is given."""

    @property
    def decoder(self) -> _Given:
        return self

    def forward(self, *_: Any, inputs_embeds: Tensor | None = None, **__: Any) -> _GivenOutput:
        return _GivenOutput(last_hidden_state=inputs_embeds)


def run_head(model: PreTrainedModel, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
    """What a model with a head computes from its body's output.

    The model's own `forward` runs, on a shallow copy of the model in which a stand-in replaces the body; so soft caps,
    scales and extra layers are the model's, and the model itself is never touched.
    """
    return head_alone(model)(inputs_embeds=hidden[None]).logits[0]


def head_alone(model: PreTrainedModel, **others: nn.Module) -> PreTrainedModel:
    """A shallow copy of a model that takes last hidden states as `inputs_embeds`; its parameters are those of the head.

    Args:
        model: The model.
        **others: What else stands in for modules of the model, by their names.
    """
    shell = copy.copy(model)
    modules = {**vars(model)["_modules"], model.base_model_prefix: _Given(), **others}
    shell.__dict__ = {**model.__dict__, "_modules": modules}
    return shell


def config_limit(config: PretrainedConfig) -> int | None:
    """Positions by the model's configuration, under whatever name it has them."""
    config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
