"""The lanes of a stage and what the model remembers of each, carried from step to step and into a checkpoint.

Lanes begin anew at random, so that a stage with a long lifetime shows memories of every age.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import RecipeError
from ..model import RecurrentMemoryModel
from ..segments import Segment
from ..state import MemoryState
from .lanes import Lane, restore_random
from .recipe import Stage

LANES_FILE = "lanes.json"
_COUNTERS = ("tokens_read", "segments_folded", "pending", "pending_lengths")


class CarriedLanes:
    """Lanes side by side, each with its memory.

    Args:
        stage: How many there are, and of what.
        model: What remembers them.
        tokenizer: A `tokenizers.Tokenizer`.
        noise: Documents of each source.
        seed: What is drawn is a function of it.
    """

    def __init__(
        self, stage: Stage, model: RecurrentMemoryModel, tokenizer: Any, noise: Sequence[Sequence[str]], seed: str
    ) -> None:
        self.stage, self.model, self.tokenizer, self.noise = stage, model, tokenizer, noise
        self._digest = digest(noise)
        self.rng = random.Random(seed)
        self.lanes = [self._draw() for _ in range(stage.lanes)]
        self.state: MemoryState = model.initial_state(stage.lanes)
        self.lost: set[int] = set()

    def _draw(self) -> Lane:
        stage, rng = self.stage, self.rng
        low, high = stage.facts
        facts = math.exp(rng.uniform(math.log(low), math.log(high)))
        return Lane(
            self.tokenizer,
            self.noise,
            rng.getrandbits(48),
            facts,
            rng.choice(stage.distractors),
            stage.segment_length,
            stage.first_facts if rng.random() < 0.8 else 0.0,
        )

    def renew(self, step: int) -> None:
        """Begin some lanes anew: those that are lost, and after the first step any, at random."""
        stage, rng = self.stage, self.rng
        fresh = [
            row
            for row in range(stage.lanes)
            if row in self.lost or (step and rng.random() < stage.num_segments / stage.lifetime)
        ]
        for row in fresh:
            self.lanes[row] = self._draw()
        if fresh:
            chosen = torch.zeros(stage.lanes, dtype=torch.bool)
            chosen[fresh] = True
            self.state = self.model.initial_state(stage.lanes).where(chosen, self.state)

    def take(self) -> Segment:
        """The next segment of every lane."""
        taken = [lane.take() for lane in self.lanes]
        lengths = torch.tensor([len(ids) for ids in taken])
        width = int(lengths.max())
        return Segment(torch.tensor([ids + [0] * (width - len(ids)) for ids in taken]), lengths)

    def save(self, folder: Path) -> None:
        """Write the lanes into a checkpoint, as JSON; the memory goes with the tensors (`memory_values`)."""
        values = {
            "noise": self._digest,
            "random": self.rng.getstate(),
            "lost": sorted(self.lost),
            "lanes": [lane.values() for lane in self.lanes],
        }
        (folder / LANES_FILE).write_text(json.dumps(values), encoding="utf-8")

    def memory_values(self) -> dict[str, Any]:
        """The memory, as tensors."""
        return {"tensors": self.state.tensors, **{name: getattr(self.state, name) for name in _COUNTERS}}

    def load(self, folder: Path, memory: dict[str, Any]) -> None:
        """Take back what `save` and `memory_values` gave.

        Raises:
            RecipeError: if the file is missing or damaged, or the noise is another.
        """
        path = folder / LANES_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["noise"] != self._digest:
                raise RecipeError(
                    f"{folder}: was trained on other noise than this; give the same texts to resume, "
                    "or begin a new training with another out=…"
                )
            lanes = [Lane.restored(self.tokenizer, self.noise, lane) for lane in values["lanes"]]
            if len(lanes) != self.stage.lanes:
                raise RecipeError(
                    f"{folder}: is of a stage with {len(lanes)} lanes, not {self.stage.lanes}; resume with the same recipe"
                )
            restore_random(self.rng, values["random"])
            self.lanes, self.lost = lanes, set(values["lost"])
            self.state = replace(self.state.detach(), **memory)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            if isinstance(error, RecipeError):
                raise
            raise RecipeError(
                f"{path}: cannot be read ({error!r}); remove {folder} to resume from an older checkpoint"
            ) from error


def digest(noise: Sequence[Sequence[str]]) -> str:
    """Names the documents, of all sources in order."""
    found = hashlib.sha256()
    for documents in noise:
        found.update(f"{len(documents)} documents ".encode())
        for document in documents:
            found.update(f"{len(document)} ".encode())
            found.update(document.encode("utf-8", "surrogatepass"))
    return found.hexdigest()
