"""The command of lm-evaluation-harness, which knows `--model recurrent-memory` here.

    python -m recurrent_memory.evaluation.lm_harness --model recurrent-memory --model_args pretrained=FOLDER --tasks babilong_qa1

It is `lm_eval` itself, with all of its arguments, after the model has been registered. `lm_eval` 0.4.13 has no way to find
models of other packages; later versions look for the entry point that this package declares.
"""

from __future__ import annotations

import sys
from importlib import import_module

from ..errors import RecurrentMemoryError


def main() -> int:
    """Run `lm_eval` with the arguments of this process; the exit status is 0, or 2 after one clear line on stderr."""
    try:
        import_module(".lm_harness_model", __package__)
        import_module("lm_eval.__main__").cli_evaluate()
    except RecurrentMemoryError as error:
        print(f"lm_harness: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
