"""Planting: for a while, a part of the product is another one that takes the same arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


def part(owner: Any, name: str) -> Any:
    """Return the part of the product that a bug stands in for."""
    return getattr(owner, name)


@contextmanager
def swapped(owner: Any, name: str, wrong: Any) -> Iterator[None]:
    """Let `owner.name` be `wrong` for a while.

    Raises: TypeError, where `wrong` does not take what `owner.name` takes. A bug that only breaks
    the call would be found by anything, and show nothing.
    """
    right = getattr(owner, name)
    if inspect.isfunction(right) and inspect.isfunction(wrong):
        _check_that_it_takes(wrong, inspect.signature(right).parameters.values())
    setattr(owner, name, wrong)
    try:
        yield
    finally:
        setattr(owner, name, right)


def _check_that_it_takes(wrong: Any, asked: Iterable[inspect.Parameter]) -> None:
    named = [each.name for each in asked if each.kind is each.KEYWORD_ONLY]
    placed = [each for each in asked if each.kind is each.POSITIONAL_OR_KEYWORD]
    inspect.signature(wrong).bind(*placed, **dict.fromkeys(named))
