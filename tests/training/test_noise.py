"""What is taken as noise from a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from recurrent_memory.errors import InputError
from recurrent_memory.training.noise import load_noise


def test_a_folder_that_is_named_is_taken_and_folders_of_tests_inside_are_not(tmp_path: Path) -> None:
    texts = {"test/book.txt": "A book. ", "test/tests/test_book.py": "A test. ", "test/more/page.md": "A page. "}
    texts |= {
        "test/latest/new.txt": "A novel.",
        "test/contest/won.txt": "A prize.",
        "test/tests/testdata/x.md": "A datum.",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text * 50)
    [found] = load_noise([str(tmp_path / "test")], 10_000, 0)
    assert {text[:7] for text in found} == {"A book.", "A page.", "A novel", "A prize"}


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text of at least 200 characters is there"):
        load_noise([str(tmp_path)], 10_000, 0)
