"""Look into a model's layers while it runs: change what goes in, see what comes out. Nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Before = Callable[[int, Tensor], Tensor]
After = Callable[[int, Tensor], None]
_NAMES = ("hidden_states", "hidden_state")


@contextmanager
def watching(layers: Sequence[nn.Module], before: Before, after: After | None = None) -> Generator[None]:
    """While this lasts, every layer is given what `before` makes of its input, and `after` sees its output.

    Args:
        layers: The layers, first to last.
        before: Called with the number of a layer and its input, `[B, R, D]`.
        after: Called with the number of a layer and its output, `[B, R, D]`.
    """
    handles: list[Any] = []
    try:
        for number, layer in enumerate(layers):
            handles.append(layer.register_forward_pre_hook(_entering(number, before), with_kwargs=True))
            if after is not None:
                handles.append(layer.register_forward_hook(_leaving(number, after)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _entering(number: int, before: Before) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def hook(
        _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (before(number, args[0]), *args[1:]), kwargs
        name = next(name for name in _NAMES if name in kwargs)
        return args, {**kwargs, name: before(number, kwargs[name])}

    return hook


def _leaving(number: int, after: After) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_layer: nn.Module, _args: Any, output: Any) -> None:
        after(number, output[0] if isinstance(output, tuple) else output)

    return hook
