"""Write the tools' schemas into the templates, from the same catalogue as schemas/.

A region begins with `# schema: EXPORT TOOL` and ends with `# schema: end`. `--check` changes
nothing and exits 1 where a template is not what the catalogue says.
"""

# ruff: noqa: INP001 - a script, no package

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from kb_mcp.agent.catalogue import ToolName, select_tools
from kb_mcp.agent.export import ExportName, render

HERE = Path(__file__).resolve().parent
TEMPLATES = ("agents.yaml", "gateway.yaml")
REGION = re.compile(r"(?m)^( *)# schema: (\w+) (\w+)\n(?:.*\n)*?\1# schema: end\n")
# Names of arguments: CloudFormation has its own case for everything but these.
MAPS = frozenset({"parameters", "properties"})


def main() -> int:
    """Write, or check, every template."""
    check, stale = "--check" in sys.argv[1:], []
    for name in TEMPLATES:
        file = HERE / name
        text = file.read_text(encoding="utf-8")
        written = REGION.sub(_region, text)
        if written != text:
            stale.append(name)
            if not check:
                file.write_text(written, encoding="utf-8")
    print(f"{', '.join(stale) or 'nothing'} {'is stale' if check else 'written'}")  # noqa: T201 - a script
    return int(check and bool(stale))


def export(name: ExportName, tool: str) -> str:
    """Return the export of one tool, as `kb-mcp export NAME --tools TOOL` prints it."""
    return render(name, select_tools(frozenset({ToolName(tool)}), allow_reference=False))


def in_cloudformation(value: Any, *, names: bool = False) -> Any:
    """Return JSON with CloudFormation's capitals: every key, but for the names of arguments."""
    if isinstance(value, dict):
        return {
            key if names else key[0].upper() + key[1:]: in_cloudformation(
                inner, names=not names and key in MAPS
            )
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [in_cloudformation(inner) for inner in value]
    return value


def _region(match: re.Match[str]) -> str:
    indent, name, tool = match[1], match[2], match[3]
    match name:
        case "openapi":
            lines = ["Payload: |", *(f"  {line}" for line in export(name, tool).splitlines())]
        case "functions":
            lines = _yaml("FunctionSchema", json.loads(export(name, tool)))
        case "gateway":
            lines = _yaml("ToolSchema", json.loads(export(name, tool)))
        case _:
            raise ValueError(f"no template takes the export {name}")
    body = "".join(f"{indent}{line}".rstrip() + "\n" for line in lines)
    return f"{indent}# schema: {name} {tool}\n{body}{indent}# schema: end\n"


def _yaml(key: str, value: Any) -> list[str]:
    # JSON is YAML: nothing is lost between the two.
    lines = json.dumps(in_cloudformation(value), indent=2).splitlines()
    return [f"{key}:", *(f"  {line}" for line in lines)]


if __name__ == "__main__":
    sys.exit(main())
