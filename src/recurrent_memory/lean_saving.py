"""Folders without what is as in the backbone: a memory with its adapter takes a few megabytes, most backbones do not."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from .errors import BackboneError

if TYPE_CHECKING:
    from .model import RecurrentMemoryModel

_OF_ADAPTERS = (".base_layer", ".original_module")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a folder is to be without.

    Args:
        names: Of the model's weights.
        source: What `complete` needs to know of them, for the configuration.
    """

    names: frozenset[str]
    source: dict[str, str]


def left_out(
    model: RecurrentMemoryModel, weights: dict[str, Tensor], name: str, among: Container[str] | None = None
) -> LeftOut:
    """Which of a model's weights its backbone has too.

    Args:
        model: The model.
        weights: All of its weights.
        name: The backbone: a hub id, or a folder.
        among: The names of weights to look at; None: all.

    Raises:
        BackboneError: if the backbone cannot be loaded, or nothing in it is as in the model.
    """
    theirs = _backbone_weights(model, name)
    same = {
        ours: theirs[_plain(ours)]
        for ours, tensor in weights.items()
        if (among is None or ours in among)
        and _plain(ours) in theirs
        and torch.equal(tensor.detach().cpu(), theirs[_plain(ours)])
    }
    if not same:
        raise BackboneError(f"{name}: no weight of it is in the model as it is there; save the model whole")
    source = {"name": name, "dtype": str(model.dtype).removeprefix("torch."), "sha256": _digest(same)}
    return LeftOut(frozenset(same), source)


def complete(model: RecurrentMemoryModel, missing: set[str], source: dict[str, str]) -> set[str]:
    """Give a model that was saved without them the weights of its backbone.

    Args:
        model: The model.
        missing: The names of the weights that its folder lacks.
        source: What `left_out` said of the rest.

    Returns:
        The names of those that the backbone lacks too.

    Raises:
        BackboneError: if the backbone cannot be loaded, or is no longer what it was.
    """
    theirs = _backbone_weights(model, source["name"], source["dtype"])
    found = {ours: theirs[_plain(ours)] for ours in missing if _plain(ours) in theirs}
    if _digest(found) != source["sha256"]:
        raise BackboneError(
            f"{source['name']}: is not the backbone that this model was saved without (its weights are others); give the "
            "one that it was trained on, at the same place or by --backbone, from_pretrained(…, backbone=…)"
        )
    own = model.state_dict()
    with torch.no_grad():
        for ours, tensor in found.items():
            own[ours].copy_(tensor)
    return missing - found.keys()


@contextmanager
def says_nothing_of_missing_weights() -> Generator[None]:
    """Within it, transformers does not report that weights are missing: they are looked for elsewhere, and checked."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _backbone_weights(model: RecurrentMemoryModel, name: str, dtype: str | None = None) -> dict[str, Tensor]:
    wanted = getattr(torch, dtype) if dtype is not None else model.dtype
    head: dict[str, Any] = {"num_labels": model.backbone.config.num_labels}
    try:
        # The head is missing, as it is in the model's own folder; and it is drawn.
        with says_nothing_of_missing_weights(), torch.random.fork_rng(devices=[]):
            backbone: Any = type(model.backbone).from_pretrained(name, dtype=wanted, use_safetensors=True, **head)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise BackboneError(
            f"{name}: the backbone of this model cannot be loaded ({reason}); if it is elsewhere, say where "
            "with --backbone, from_pretrained(…, backbone=…)"
        ) from error
    return cast(dict[str, Tensor], backbone.state_dict())


def _plain(name: str) -> str:
    """The name of a weight in the backbone alone, without adapters."""
    name = name.removeprefix("backbone.")
    for part in _OF_ADAPTERS:
        name = name.replace(f"{part}.", ".")
    return name


def _digest(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{_plain(name)} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(cast(Any, tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()
