"""What `import recurrent_memory` gives, and what it costs."""

import doctest
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import recurrent_memory

ROOT = Path(__file__).parents[1]
PUBLIC = [
    "BackboneError",
    "ConfigError",
    "GenerationError",
    "InputError",
    "MemoryConfig",
    "MemoryReader",
    "MemoryState",
    "OutputError",
    "RecipeError",
    "RecurrentMemoryConfig",
    "RecurrentMemoryError",
    "RecurrentMemoryModel",
    "SourceChangedError",
    "StateError",
    "StateFileError",
    "StateModelMismatchError",
]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_public_names_are_these() -> None:
    assert recurrent_memory.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(recurrent_memory))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_a_class_of_that_name(name: str) -> None:
    value = getattr(recurrent_memory, name)
    assert isinstance(value, type)
    assert value.__name__ == name
    assert getattr(recurrent_memory, name) is value


def test_every_error_is_public_and_in_one_tree() -> None:
    def tree(error: type[Exception]) -> set[str]:
        return {error.__name__}.union(*(tree(child) for child in error.__subclasses__()))

    ours = {name for name in tree(recurrent_memory.RecurrentMemoryError) if hasattr(recurrent_memory.errors, name)}
    assert ours == {name for name in PUBLIC if name.endswith("Error")}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'recurrent_memory' has no attribute 'MemoryStat'"):
        _ = recurrent_memory.MemoryStat  # type: ignore[attr-defined]


def test_the_import_takes_less_than_300_ms() -> None:
    code = "import time; t = time.perf_counter(); import recurrent_memory; print(time.perf_counter() - t)"
    elapsed_s = [float(run(code)) for _ in range(5)]
    assert statistics.median(elapsed_s) < 0.3


def test_the_import_brings_no_heavy_library() -> None:
    heavy = {"torch", "transformers", "numpy", "pydantic", "typer", "rich", "matplotlib", "peft"}
    loaded = run("import sys, recurrent_memory; print(*{name.partition('.')[0] for name in sys.modules})")
    assert "recurrent_memory" in loaded.split()
    assert heavy.isdisjoint(loaded.split())


def test_the_models_are_registered_at_once_where_transformers_is_loaded() -> None:
    code = "import sys, transformers, recurrent_memory; print('recurrent_memory.model' in sys.modules)"
    assert run(code) == "True"


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert recurrent_memory.__version__ == version
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [version]
    assert version in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_docstring_is_true() -> None:
    result = doctest.testmod(recurrent_memory)
    assert result.attempted > 0
    assert result.failed == 0
