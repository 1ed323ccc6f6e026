"""Public tensors have the axes that their annotations say."""

import subprocess
import sys
from pathlib import Path

from contract.backbones import BACKBONES


def test_every_annotation_holds_over_every_backbone() -> None:
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("axes.py"))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == [*(tiny.name for tiny in BACKBONES), "TypeCheckError"]
