"""The public names have types: mypy reads this file in `make check`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any, assert_type

import kb_mcp
from kb_mcp.converse import ConverseTools, answer_return_control
from kb_mcp.lambda_entry import handler

if TYPE_CHECKING:

    def read_by_mypy(tools: ConverseTools, event: dict[str, Any]) -> None:
        assert_type(kb_mcp.idempotency_key("cus_Abc123", 2900, "2026-06"), str)
        assert_type(tools.tool_config(profile="strict"), dict[str, Any])
        assert_type(tools.handle(event), dict[str, Any] | None)
        assert_type(answer_return_control(event), list[dict[str, Any]])
        assert_type(handler(event, None), dict[str, Any])


def test_the_package_says_that_it_is_typed() -> None:
    assert files("kb_mcp").joinpath("py.typed").is_file()


def test_a_name_that_is_not_public_is_not_there() -> None:
    names: Mapping[str, Any] = vars(kb_mcp)
    assert set(kb_mcp.__all__) == {"create_app", "idempotency_key"}
    assert not hasattr(kb_mcp, "governor")
    assert "__version__" in names
