"""README's tables say what the catalogue says."""

from __future__ import annotations

from tests.docs.tool_tables import README, REGION, written


def test_the_tables_of_the_tools_are_those_of_the_catalogue() -> None:
    text = README.read_text(encoding="utf-8")

    assert len(REGION.findall(text)) == 1
    assert text == written(text), "python -m tests.docs.tool_tables writes them anew"
