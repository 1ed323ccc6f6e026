"""The baseline: a plain causal language model with full attention in a window that moves over the text.

It scores the same tokens as a model with a memory: the last position of a window predicts the token after it. Where the
stride is the window, each token is read once and the context begins anew with every window; with a smaller one, windows
overlap, and a token has at least `window − stride` tokens before it, as far as the document has.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..backbones.base import check_finite, config_limit
from ..backbones.decoder import DecoderBackbone
from ..backbones.families import find_family
from ..configuration import RecurrentMemoryConfig
from ..errors import BackboneError, ConfigError, GenerationError
from ..models import SHIPPED, choose_device, choose_dtype
from ..segments import Segment
from .perplexity import TextReading


class WindowReading(TextReading):
    """A plain model reads window by window, and remembers nothing.

    Args:
        model: A causal language model.
        window: Tokens of a window.
        stride: Tokens by which it moves; None: the window.

    Raises:
        GenerationError: if the model does not continue texts.
        ConfigError: if the window does not fit the model's positions, or the stride the window.
    """

    def __init__(self, model: PreTrainedModel, window: int, stride: int | None = None) -> None:
        check_is_decoder(model.config)
        stride = window if stride is None else stride
        limit = config_limit(model.config)
        if window < 1 or (limit is not None and window > limit):
            raise ConfigError(f"window={window} must be 1 to the model's {limit or 'many'} positions")
        if not 1 <= stride <= window:
            raise ConfigError(f"stride={stride} must be 1 to the window's {window} tokens")
        super().__init__(model, DecoderBackbone(model), window, stride)

    @property
    def settings(self) -> dict[str, Any]:
        """See `TextReading.settings`."""
        return {
            "reading": "window",
            "model": hash_weights(self.model),
            "window": self.width,
            "stride": self.stride,
        }

    @property
    def state_bytes(self) -> int:
        """Nothing."""
        return 0

    def join(self, count: int) -> None:
        """Nothing: a window is all that is known."""

    def keep(self, lanes: list[int]) -> None:
        """Nothing, likewise."""

    def read(self, rows: Segment, going_on: Bool[Tensor, " B"], asked: Tensor) -> Float[Tensor, "B T D"]:
        """See `TextReading.read`."""
        parts = [self.view.encode(self.view.embed(rows.input_ids[part]), None) for part in self.batches(len(asked))]
        return torch.cat(parts)


def has_memory(name_or_path: str | None) -> bool:
    """Whether a name is that of a recurrent-memory model; so, too, if there is nothing of that name."""
    if name_or_path is None or name_or_path == SHIPPED:
        return True
    try:
        config = AutoConfig.from_pretrained(_place(name_or_path))
    except (OSError, ValueError, KeyError):
        return True
    return config.model_type == RecurrentMemoryConfig.model_type


def load_plain_model(name_or_path: str, device: str = "auto", dtype: str = "auto") -> tuple[PreTrainedModel, Any]:
    """Load a causal language model without a memory, and its tokenizer.

    Args:
        name_or_path: A folder, or a hub id.
        device: As for `models.load_model`.
        dtype: Likewise.

    Raises:
        GenerationError: if the model does not continue texts.
        BackboneError: if it cannot be loaded, has no tokenizer beside it, or is broken.
        ConfigError: if the device or the dtype is not there.
    """
    where = choose_device(device)
    number = choose_dtype(dtype, where)
    place = _place(name_or_path)
    try:
        check_is_decoder(AutoConfig.from_pretrained(place))
        model = AutoModelForCausalLM.from_pretrained(place, use_safetensors=True, dtype=number or "auto")
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (GenerationError, BackboneError):
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise BackboneError(f"{place}: cannot be loaded as a causal language model ({reason})") from error
    check_finite(model)
    moved: Any = model.to(where)  # pyright: ignore[reportArgumentType]
    return moved.eval(), tokenizer


def check_is_decoder(config: Any) -> None:
    """Refuse a model that does not continue texts.

    Raises:
        GenerationError: if it is an encoder or an encoder–decoder.
        BackboneError: if its family is not known.
    """
    family = find_family(config).name
    if family != DecoderBackbone.family:
        raise GenerationError(f"a model of the family {family!r} does not continue a text; use a decoder")


def _place(name_or_path: str) -> str:
    path = Path(name_or_path).expanduser()
    return str(path) if path.exists() else name_or_path


def hash_weights(model: nn.Module) -> str:
    """Names the weights of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
