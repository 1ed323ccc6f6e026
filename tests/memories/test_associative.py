"""The normaliser of an associative memory, and what it has to cover."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from contract.backbones import DECODERS
from contract.cases import model_of
from recurrent_memory.memories.associative import EPSILON, AssociativeMemory, dpfp

TINY = next(tiny for tiny in DECODERS if tiny.name == "gpt2+associative+cover")


@torch.no_grad()
@pytest.mark.parametrize("cover", [0.0, 0.1, 1.0])
def test_the_normaliser_has_its_share_of_every_feature_that_was_written(cover: float) -> None:
    model = model_of(replace(TINY, cover=cover))
    memory = model.memory
    assert isinstance(memory, AssociativeMemory)
    weights = {name: tensor[0] for name, tensor in memory.layer_weights().items()}
    kept = {name: tensor[:, 0] for name, tensor in memory.initial(3).items()}
    most = torch.zeros_like(kept["z"])
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        written = torch.randn(3, 2, weights["key"].shape[1], generator=generator, dtype=torch.float64)
        most = torch.maximum(most, dpfp(written @ weights["key"].mT, 3).amax(1))
        kept = memory.remember(weights, written, kept)
    short = kept["z"] < cover * most
    assert not short.any()
    # As in the paper, some feature of the matrix is as good as missing in the normaliser.
    is_written = kept["A"].abs().amax(-1) > 0
    share = (kept["z"] / most)[is_written]
    assert (float(share.min()) < 0.05) == (cover == 0.0)


@torch.no_grad()
def test_a_query_for_what_the_normaliser_misses_is_not_divided_by_nothing() -> None:
    largest: dict[float, float] = {}
    for cover in (0.0, 0.1):
        model = model_of(replace(TINY, cover=cover))
        memory = model.memory
        assert isinstance(memory, AssociativeMemory)
        width = memory.value.shape[-1]
        weights = {
            "key": torch.eye(8, width, dtype=torch.float64),
            "query": torch.eye(8, width, dtype=torch.float64),
            "value": torch.eye(width, dtype=torch.float64),
            "rate": torch.zeros(width, dtype=torch.float64),
            "rate_bias": torch.tensor(9.0, dtype=torch.float64),
        }
        kept = {name: tensor[:, 0] for name, tensor in memory.initial(1).items()}

        def hidden(*places: int, width: int = width) -> torch.Tensor:
            row = torch.zeros(1, 1, width, dtype=torch.float64)
            row[..., list(places)] = 1
            return row

        # The second key has one feature of the first, which is counted many times over, and others that are new.
        kept = memory.remember(weights, 5 * hidden(0, 1), kept)
        kept = memory.remember(weights, hidden(0, 1, 2), kept)
        found = memory.recall(weights, hidden(1, 2), kept) - hidden(1, 2)
        largest[cover] = float(found.abs().max())
    # The second value is 4 off what was known; its new features are in the matrix with that, and with 0.1 in the normaliser.
    assert largest[0.1] == pytest.approx(4 / 0.1, rel=1e-3)
    assert largest[0.0] == pytest.approx(4 / EPSILON, rel=1e-3)
