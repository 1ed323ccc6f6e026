"""Whether an answer is right."""

from __future__ import annotations


def exact_match(output: str, target: str) -> bool:
    """Whether an answer is the target; case, white space around it and a full stop at its end aside. The default score.

    Example:
        >>> exact_match(" Garden.", "garden"), exact_match("in the garden", "garden")
        (True, False)
    """
    return output.strip().rstrip(".").strip().lower() == target.strip().lower()
