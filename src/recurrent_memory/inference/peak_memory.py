"""The most memory that this process has had."""

import resource
import sys
from pathlib import Path


def peak_rss_mb() -> float:
    """Peak resident memory in 10^6 bytes.

    On Linux from `/proc`: what `getrusage` says there begins with the peak of the process that started this one.
    """
    try:
        for line in Path("/proc/self/status").read_text("ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
