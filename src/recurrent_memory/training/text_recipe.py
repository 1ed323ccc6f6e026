"""The part of an experiment that says which text is learned, and how its examples are cut."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from .settings import Strict
from .text_examples import TextExamples, load_token_documents


class TextRecipe(Strict):
    """Language modelling: the next token of texts, run by run; see `TextExamples`.

    Args:
        train: Files, folders, `.jsonl` files or hub ids (`Salesforce/wikitext:wikitext-2-raw-v1`) to learn from.
        valid: Likewise; the held-out loss is measured on them. Other documents than those of `train`.
        train_split: Of hub ids in `train`.
        valid_split: Of hub ids in `valid`.
        join: Whether all documents of a source are one text, as the lines of WikiText are.
        loss_from_segment: Only predictions made in this segment of a run and later count; from 1.
        max_tokens: How many tokens of `train`, and of `valid`, are kept in RAM, 4 bytes each.
    """

    train: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    train_split: str = "train"
    valid_split: str = "validation"
    join: bool = False
    loss_from_segment: int = Field(1, ge=1)
    max_tokens: int = Field(100_000_000, gt=1)

    @field_validator("train", "valid", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    def examples(self, tokenizer: Any, segment_length: int) -> tuple[TextExamples, TextExamples]:
        """What is trained on, and what the held-out loss is measured on.

        Raises:
            InputError: if a source is not named, is missing, or has no text to learn from.
        """
        train, valid = (
            TextExamples(
                load_token_documents(sources, split, tokenizer, what=what, join=self.join, max_tokens=self.max_tokens),
                segment_length,
                self.loss_from_segment,
            )
            for what, sources, split in (
                ("text.train", self.train, self.train_split),
                ("text.valid", self.valid, self.valid_split),
            )
        )
        return train, valid
