"""README's tables of the tools, made of the catalogue; run as a program, it writes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from kb_mcp.agent.catalogue import Tool, ToolName, select_tools
from kb_mcp.agent.export import arguments_schema

README: Final = Path(__file__).resolve().parents[2] / "README.md"
REGION: Final = re.compile(r"(?s)<!-- tools:begin -->\n.*?<!-- tools:end -->")


def tables() -> str:
    """Return the region, between its marks."""
    tools = select_tools(frozenset(ToolName), allow_reference=False)
    body = "\n\n".join(_table(tool) for tool in tools)
    return f"<!-- tools:begin -->\n{body}\n<!-- tools:end -->"


def written(text: str) -> str:
    """Return the README's text with the region made anew."""
    return REGION.sub(lambda _: tables(), text)


def _table(tool: Tool) -> str:
    schema = arguments_schema(tool, full=True)
    rows = [
        f"| `{name}` | {field['type']} | {_presence(schema, name)} | {field['description']} |"
        for name, field in schema["properties"].items()
    ]
    head = f"**`{tool.name}`**: {tool.description.split('. ')[0]}. Key: {tool.vault_key}."
    columns = ["| argument | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([head, "", *columns, *rows])


def _presence(schema: dict[str, Any], name: str) -> str:
    required = schema.get("required", ())
    assert isinstance(required, list | tuple)
    if name in required:
        return "required"
    default = schema["properties"][name].get("default")
    return "" if default is None else f"`{default}`"


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
