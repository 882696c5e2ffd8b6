"""`kb-mcp export`: the tools as Bedrock, AgentCore, Converse and MCP take them in.

Floor: the commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from kb_mcp.cli.output import Failure, found_something, say_failure

TARGETS = ("openapi", "functions", "gateway", "converse", "mcp")


@click.command()
@click.argument("target", type=click.Choice((*TARGETS, "all")), default="all")
@click.option("--tools", default="charge,charge_status,refund", show_default=True,
              help="Which tools, separated by commas.")  # fmt: skip
@click.option("--confirmation", type=click.Choice(["on", "off"]), default="on", show_default=True,
              help="Whether Bedrock asks its user before a charge or a refund.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="Write files into this folder, or compare with them.")  # fmt: skip
@click.option("--check", is_flag=True, help="Compare with the files in --out; write nothing.")
def export(*, target: str, tools: str, confirmation: str, out: Path | None, check: bool) -> None:
    """Export the tools' schemas, to stdout or into a folder.

    Example: kb-mcp export all --out schemas --check
    """
    if check and out is None:
        raise click.UsageError("--check compares with files: give --out DIR")
    if out is None and target == "all":
        raise click.UsageError("all exports are several files: give --out DIR, or one of them")
    files = _render(target, tools, confirmed=confirmation == "on")
    if out is None:
        for text in files.values():
            click.echo(text, nl=False)
    elif check:
        _check(files, out)
    else:
        _write(files, out)


def _render(target: str, tools: str, *, confirmed: bool) -> Mapping[str, str]:
    from kb_mcp.agent.catalogue import ToolName, select_tools
    from kb_mcp.agent.export import FILE_NAMES, render
    from kb_mcp.settings import load_settings

    names = {name.strip() for name in tools.split(",")}
    unknown = names - {tool.value for tool in ToolName}
    if unknown:
        known = ", ".join(tool.value for tool in ToolName)
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: there are {known}")
    wanted = frozenset(ToolName(name) for name in names)
    selected = select_tools(wanted, allow_reference=load_settings().allow_reference)
    return {
        file: render(name, selected, confirmation=confirmed)
        for name, file in FILE_NAMES.items()
        if target in {"all", name}
    }


def _check(files: Mapping[str, str], folder: Path) -> None:
    stale = [name for name, text in files.items() if _read(folder / name) != text]
    for name in stale:
        say_failure(f"{folder / name} is not what the catalogue says", None)
    if stale:
        click.echo(f"Hint: kb-mcp export all --out {folder} writes them anew.", err=True)
        found_something()
    click.echo(f"Up to date: {', '.join(files)}.")


def _read(file: Path) -> str | None:
    try:
        return file.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None


def _write(files: Mapping[str, str], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_bytes(text.encode())
            click.echo(str(folder / name))
    except OSError as error:
        raise Failure(f"cannot write into {folder}: {error.strerror}") from None
