"""The commands of docs/reproducing.md are ones that there are, of recipes, studies and benchmarks that there are."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch

from recurrent_memory.cli import main
from tiny_models import prose

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reproducing.md"
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL) for line in block.splitlines()
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("recipes", "studies"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("books", "others", "test", "articles"):
        (tmp_path / "my" / name).mkdir(parents=True)
        (tmp_path / "my" / name / "text.txt").write_text(prose(50), "utf-8")
    return tmp_path


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("rmt ")])
def test_a_command_is_right(command: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    arguments = shlex.split(command)[1:]
    if arguments[0] in ("train", "study"):
        arguments.append("--check")
    elif "--dataset" in arguments:
        pytest.skip("its dataset is on the hub")
    else:  # the model that would have been trained before is not there
        arguments[1] = str(ROOT / "src/recurrent_memory/models/small")
        sizes = next(at for at, argument in enumerate(arguments) if argument in ("--segments", "--lengths"))
        arguments[sizes + 1] = {"--segments": "1,2", "--lengths": "600"}[arguments[sizes]]
        arguments = [*arguments, "--samples", "2"]
    assert main(arguments) == 0, capfd.readouterr().err


def test_the_benchmarks_are_there() -> None:
    named = [line.split("--only ")[1].split()[0] for line in COMMANDS if "-m benchmarks" in line]
    assert named
    for name in named:
        importlib.import_module(f"benchmarks.{name}")


def test_what_is_linked_and_named_is_there() -> None:
    text = PAGE.read_text("utf-8")
    paths = [PAGE.parent / link for link in re.findall(r"\]\(((?!https?:)[^)#]+)\)", text)]
    paths += [ROOT / name for name in re.findall(r"`((?:recipes|studies)/[\w-]+\.yaml)", text)]
    assert len(paths) > 20
    assert not [path for path in paths if not path.exists()]
