"""`rmt info`: what a model folder or a state file is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import BackboneError
from .common import Common, Debug, Device, Dtype, Json, Seed, Threads


def info(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A model folder or a state file; `shipped`: the package's model.")
    ],
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    seed: Seed = None,
    debug: Debug = False,
) -> None:
    """Say what a model folder or a state file is.

    Example: rmt info book.safetensors
    """
    from ..models import SHIPPED, shipped_model_path

    common = Common(as_json, device, dtype, threads, seed, debug)
    place = Path(path).expanduser()
    if path == SHIPPED and not place.exists():
        place = shipped_model_path()
        if not place.is_dir():
            raise BackboneError("this installation comes without a model; give the path of one")
    values, words = describe_model(place) if place.is_dir() else describe_state(place)
    common.show(values, words)


def describe_model(folder: Path) -> tuple[dict[str, Any], str]:
    """A model folder, from its configuration and the headers of its weights."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        kind = config["model_type"]
    except FileNotFoundError:
        raise BackboneError(f"{folder}: has no config.json, so it is not a model folder") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BackboneError(f"{folder}: its config.json cannot be read ({error!r}); is the folder whole?") from error
    weights = _count_weights(folder)
    values: dict[str, Any] = {"kind": "model", "path": str(folder), "model_type": kind, **weights}
    if kind != "recurrent-memory":
        values["memory"] = None
        words = (
            f"{folder}: a {kind} model without a memory{_size(weights)}.\n"
            "Give it one: RecurrentMemoryModel.from_backbone(folder, MemoryConfig(…)), and train it (`rmt train`)."
        )
        return values, words
    backbone, memory = config.get("backbone") or {}, config.get("memory") or {}
    values |= {
        "backbone_class": config.get("backbone_class"),
        "family": config.get("family"),
        "memory": memory,
        "vocab_size": backbone.get("vocab_size"),
        "has_tokenizer": any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")),
        "fingerprint": config.get("fingerprint"),
        "backbone_source": (config.get("backbone_source") or {}).get("name"),
    }
    recent = f", of which {memory['recent']} are the last tokens read" if memory.get("recent") else ""
    source = f"The rest of its weights is that of {values['backbone_source']}.\n" if values["backbone_source"] else ""
    adapters = f", with the adapters {', '.join(config['peft'])} inside" if config.get("peft") else ""
    tokenizer = (
        "A tokenizer lies beside it."
        if values["has_tokenizer"]
        else "It has no tokenizer, so `rmt` cannot read text with it."
    )
    words = (
        f"{folder}: a recurrent-memory model: {config.get('backbone_class')}{adapters}{_size(weights)}.\n{source}"
        f"It reads segments of {memory.get('segment_length')} tokens, and remembers "
        f"{memory.get('num_memory_tokens')} memory tokens of the kind {memory.get('kind')!r}{recent}.\n"
        f"Vocabulary: {backbone.get('vocab_size'):,} tokens. {tokenizer}\n"
        f"Fingerprint: {config.get('fingerprint')}"
    )
    return values, words


def _count_weights(folder: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    parameters, dtypes, size = 0, set[str](), 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118
                    piece = opened.get_slice(name)
                    count = 1
                    for width in piece.get_shape():
                        count *= width
                    parameters += count
                    dtypes.add(piece.get_dtype())
        except (SafetensorError, OSError) as error:
            raise BackboneError(f"{file}: the weights are damaged ({error}); is the folder whole?") from error
        size += file.stat().st_size
    return {"parameters": parameters, "dtypes": sorted(dtypes), "bytes": size}


def _size(weights: dict[str, Any]) -> str:
    if not weights["parameters"]:
        return ", its weights not in safetensors"
    return f", {weights['parameters']:,} weights in {'/'.join(weights['dtypes'])}, {weights['bytes']:,} bytes"


def describe_state(path: Path) -> tuple[dict[str, Any], str]:
    """A state file, finished or partial."""
    from ..inference.journal import READING, texts_of
    from ..state import MemoryState

    state, metadata = MemoryState.load(path), MemoryState.read_metadata(path)
    unfinished = READING in metadata
    texts = texts_of(metadata)
    names = [_names(text.sources) for text in texts]
    rows = [
        {"tokens_read": read, "segments_folded": folded, "pending": pending}
        for read, folded, pending in zip(
            state.tokens_read.tolist(), state.segments_folded.tolist(), state.pending_lengths.tolist(), strict=True
        )
    ]
    values: dict[str, Any] = {
        "kind": "partial state" if unfinished else "state",
        "path": str(path),
        "rows": rows,
        "texts": [{"name": name, "tokens": text.tokens} for name, text in zip(names, texts, strict=True)],
        "memory": state.memory_config.to_dict(),
        "shapes": {name: list(tensor.shape) for name, tensor in state.tensors.items()},
        "state_bytes": state.num_bytes,
        "model": metadata.get("model"),
        "fingerprint": state.fingerprint,
    }
    lines = [
        f"{path}: {'what an interrupted reading remembered so far' if unfinished else 'the memory of a text that was read'}."
    ]
    lines += [f"Text: {name}, {text.tokens:,} tokens" for name, text in zip(names, texts, strict=True)]
    lines += [
        f"Row {number}: {row['tokens_read']:,} tokens read, {row['segments_folded']:,} segments of "
        f"{state.memory_config.segment_length} folded, {row['pending']} tokens pending."
        for number, row in enumerate(rows)
    ]
    shapes = ", ".join(f"{name} {shape}" for name, shape in values["shapes"].items())
    lines += [f"Remembered: {state.num_bytes:,} bytes ({shapes})."]
    lines += [f"Model: {metadata.get('model') or 'not recorded'}, fingerprint {state.fingerprint}"]
    if unfinished:
        lines += ["Go on with the `rmt read` that was interrupted, and --resume."]
    return values, "\n".join(lines)


def _names(sources: Any) -> str:
    if not sources:
        return "standard input or an iterator"
    names = [file["name"] for file in sources["files"]]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
