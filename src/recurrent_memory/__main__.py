"""`python -m recurrent_memory`: the command `rmt`, for `torchrun -m`."""

from .cli import main

raise SystemExit(main())
