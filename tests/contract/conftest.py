import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.modernbert import modeling_modernbert
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.utils import logging


@pytest.fixture(autouse=True, scope="session")
def one_thread_and_no_bars() -> None:
    torch.set_num_threads(1)  # tiny models are slower with more
    logging.disable_progress_bar()


@pytest.fixture
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """What some backbones compute in float32 whatever their weights are, they compute in the dtype of their weights.

    Else a gradient, in which the rounding of many layers adds up, could be compared to no better than 1e-5.
    """

    def norm(self: nn.Module, hidden: Tensor) -> Tensor:
        epsilon = self.eps if isinstance(self, Gemma3RMSNorm) else self.variance_epsilon
        weight = 1 + self.weight if isinstance(self, Gemma3RMSNorm) else self.weight
        return weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + epsilon)

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        half = modeling_modernbert.rotate_half
        return q * cos + half(q) * sin, k * cos + half(k) * sin

    for cls in (Gemma3RMSNorm, LlamaRMSNorm, MistralRMSNorm, Qwen3RMSNorm, T5LayerNorm):
        monkeypatch.setattr(cls, "forward", norm)
    monkeypatch.setattr(modeling_modernbert, "apply_rotary_pos_emb", rotate)


@pytest.fixture(autouse=True)
def _shortcuts(shortcuts_in_small_models: None) -> None:
    """The suite is run over the shortcuts."""
