"""The exports: the catalogue as the artefacts that other systems take in.

Floor: wing A, above the single exports. Pure: text comes out, nobody writes a file here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal

from kb_mcp.agent.catalogue import Tool
from kb_mcp.agent.export.converse import tool_config
from kb_mcp.agent.export.functions import functions
from kb_mcp.agent.export.gateway import gateway
from kb_mcp.agent.export.mcp import mcp_tools
from kb_mcp.agent.export.openapi import openapi
from kb_mcp.agent.export.schemas import Json

__all__ = ["FILE_NAMES", "ExportName", "render"]

ExportName = Literal["openapi", "functions", "gateway", "converse", "mcp"]
FILE_NAMES: Final[Mapping[ExportName, str]] = MappingProxyType(
    {
        "openapi": "bedrock-openapi.json",
        "functions": "bedrock-functions.json",
        "gateway": "agentcore-gateway.json",
        "converse": "converse-toolconfig.json",
        "mcp": "mcp-tools.json",
    }
)
_MAKERS: Final[Mapping[ExportName, Callable[[Sequence[Tool], bool], Json]]] = MappingProxyType(
    {
        "openapi": lambda tools, confirmation: openapi(tools, confirmation=confirmation),
        "functions": lambda tools, confirmation: functions(tools, confirmation=confirmation),
        "gateway": lambda tools, _: gateway(tools),
        "converse": lambda tools, _: tool_config(tools),
        "mcp": lambda tools, _: mcp_tools(tools),
    }
)


def render(name: ExportName, tools: Sequence[Tool], *, confirmation: bool = True) -> str:
    """Render one artefact: JSON in the catalogue's order, two spaces deep, ending in a newline.

    `confirmation` says whether Bedrock asks its user before a charge; other targets have no such
    switch.
    """
    document = _MAKERS[name](tools, confirmation)
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
