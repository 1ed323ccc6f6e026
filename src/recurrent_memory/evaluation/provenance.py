"""What a figure was made with: commit, versions, machine."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("recurrent-memory", "torch", "transformers")


@cache
def checkout() -> dict[str, Any]:
    """The commit of the code where it is a checkout, and whether there were changes to it.

    As it was when this was called first, so call it when the work begins: hours later the checkout may be another.
    """
    return checkout_now()


def checkout_now() -> dict[str, Any]:
    """What `checkout` says, looked at again: for a process that is begun now, and imports what is there now."""
    is_checkout = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    commit, changes = (_git("rev-parse", "HEAD"), _git("status", "--porcelain")) if is_checkout else (None, None)
    return {"commit": commit, "has_uncommitted_changes": None if commit is None else bool(changes)}


def machine() -> dict[str, Any]:
    """What `checkout` says, versions, processor, cores, load, and the time."""
    return {
        **checkout(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    try:
        folder = str(Path(__file__).parent)
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
