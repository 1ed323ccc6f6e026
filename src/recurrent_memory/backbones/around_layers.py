"""What a model does before its layers and after them, with other things in the layers' places."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from .base import Backbone

_NAMES = ("hidden_states", "hidden_state")


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """With what a model called one of its layers, besides the hidden states.

    Args:
        args: Positional arguments after the hidden states, where those came first.
        kwargs: Keyword arguments, without the hidden states.
        name: The keyword of the hidden states; None where they came first.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str | None = None

    def on(self, layer: Callable[..., Any], hidden: Tensor) -> Tensor:
        """The hidden states that the layer makes of others."""
        if self.name is None:
            output = layer(hidden, *self.args, **self.kwargs)
        else:
            output = layer(*self.args, **{**self.kwargs, self.name: hidden})
        return output[0] if isinstance(output, tuple) else output


def call_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """The hidden states that a layer was called with, and the rest of the call."""
    if args:
        return args[0], Call(args[1:], kwargs)
    name = next(name for name in _NAMES if name in kwargs)
    return kwargs[name], Call((), {key: value for key, value in kwargs.items() if key != name}, name)


@contextmanager
def replaced(layers: Sequence[nn.Module], substitute: Callable[[int, Tensor, Call], Any]) -> Generator[None]:
    """While this lasts, `substitute` runs in place of every layer, and what it returns is the layer's output.

    Args:
        layers: The layers, first to last.
        substitute: Called with the number of a layer, the hidden states that enter it, and the rest of the call.
    """
    forwards = [vars(layer).get("forward") for layer in layers]

    def stand_in(number: int) -> Callable[..., Any]:
        return lambda *args, **kwargs: substitute(number, *call_of(args, kwargs))

    try:
        for number, layer in enumerate(layers):
            layer.forward = stand_in(number)
        yield
    finally:
        for layer, forward in zip(layers, forwards, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def enter(
    backbone: Backbone, rows: Float[Tensor, "B R E"], lengths: Int[Tensor, " B"] | None, *, as_tuple: bool
) -> tuple[Float[Tensor, "B R D"], list[Call]]:
    """What goes into a model's first layer, and with what it calls each of them.

    Args:
        backbone: The model.
        rows: As for `Backbone.encode`.
        lengths: As for `Backbone.encode`.
        as_tuple: Whether the layers return tuples.
    """
    entered: list[Tensor] = []
    calls: list[Call] = []

    def pass_on(number: int, hidden: Tensor, call: Call) -> Any:
        if not number:
            entered.append(hidden)
        calls.append(call)
        return (hidden,) if as_tuple else hidden

    with replaced(backbone.layers(), pass_on):
        backbone.encode(rows, lengths)
    return entered[0], calls


def leave(
    backbone: Backbone, rows: Float[Tensor, "B R E"], hidden: Float[Tensor, "B R D"], *, as_tuple: bool
) -> Float[Tensor, "B R E"]:
    """What a model makes of its last layer's output.

    Args:
        backbone: The model.
        rows: Input embeddings of the same shape as those that went in; their values play no part.
        hidden: The last layer's output.
        as_tuple: Whether the layers return tuples.
    """
    with replaced(backbone.layers(), lambda *_: (hidden,) if as_tuple else hidden):
        return backbone.encode(rows, None)


def returns_tuples(backbone: Backbone) -> bool:
    """Whether the model's layers return tuples; looked at on a row of two positions."""
    seen: list[bool] = []
    ids = backbone.embedding.weight.new_zeros(1, 2).long()
    handle = backbone.layers()[0].register_forward_hook(lambda _, __, output: seen.append(isinstance(output, tuple)))
    try:
        backbone.encode(backbone.embed(ids), None)
    finally:
        handle.remove()
    return seen[0]
