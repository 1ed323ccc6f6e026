"""Four people in the sources of Python packages that the model was not trained on, other text than the results' and the demo's.

python results/2026-11-27_small-two-more-tries_2-core-cpu/other_packages.py MODEL HOLD LENGTH TEXTS OUT.json
"""

import json
import random
import sys
import sysconfig
from pathlib import Path

import torch

from recurrent_memory.evaluation.composite import NoiseText
from recurrent_memory.evaluation.whereabouts import Job, run_job
from recurrent_memory.models import load_model

PACKAGES = (
    "fontTools mpmath matplotlib hypothesis huggingface_hub pygments pydantic peft accelerate PIL rich setuptools pip"
)


def sources(chars: int) -> str:
    """So many characters of files in an order drawn once, those that name one of the people left out."""
    root = Path(sysconfig.get_paths()["purelib"])
    files = [path for name in PACKAGES.split() for path in sorted((root / name).rglob("*.py"))]
    random.Random(5).shuffle(files)
    found: list[str] = []
    for path in files:
        text = path.read_text("utf-8", errors="ignore")
        if "Mary" not in text and "Sandra" not in text:
            found.append(text)
        if sum(map(len, found)) > chars:
            break
    return "\n\n".join(found)


def main() -> None:
    """Read, ask, and say how many are right."""
    folder, hold, length, texts, out = sys.argv[1:]
    torch.set_num_threads(1)
    model, tokenizer = load_model(folder, "cpu", "float32")
    model.memory.carry.hold = float(hold)
    noise = NoiseText(sources(int(int(length) * 4.4) + 10_000), tokenizer)
    rows = run_job(Job("four", int(length), int(texts), seed=1), model, tokenizer, noise)
    Path(out).write_text(json.dumps(rows), encoding="utf-8")
    print(f"{sum(row['right'] for row in rows)} of {len(rows)} right")


if __name__ == "__main__":
    main()
