"""`kb-mcp export`: the tools as Bedrock, AgentCore, Converse and MCP take them in.

Floor: the commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from kb_mcp.agent.catalogue import ToolName, select_tools
from kb_mcp.agent.export import FILE_NAMES, render
from kb_mcp.cli.output import Failure, example, found_something, read_by, say_failure
from kb_mcp.settings import load_settings


def _tools(text: str) -> frozenset[ToolName]:
    names = {name.strip() for name in text.split(",")}
    known = [tool.value for tool in ToolName]
    if unknown := names.difference(known):
        raise ValueError(f"{', '.join(sorted(unknown))}: there are {', '.join(known)}")
    return frozenset(map(ToolName, names))


@click.command()
@click.argument("target", type=click.Choice((*FILE_NAMES, "all")), default="all")
@click.option("--tools", default="charge,charge_status,refund",
              callback=read_by(_tools), help="Which tools, separated by commas.")  # fmt: skip
@click.option("--confirmation", type=click.Choice(["on", "off"]), default="on",
              help="Whether Bedrock asks its user before a charge or a refund.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="Write files into this folder, or compare with them.")  # fmt: skip
@click.option("--check", is_flag=True, help="Compare with the files in --out; write nothing.")
@example("export all --out schemas --check")
def export(
    *, target: str, tools: frozenset[ToolName], confirmation: str, out: Path | None, check: bool
) -> None:
    """Export the tools' schemas, to stdout or into a folder."""
    if check and out is None:
        raise click.UsageError("--check compares with files: give --out DIR")
    if out is None and target == "all":
        raise click.UsageError("all exports are several files: give --out DIR, or one of them")
    selected = select_tools(tools, allow_reference=load_settings().allow_reference)
    files = {
        file: render(name, selected, confirmation=confirmation == "on")
        for name, file in FILE_NAMES.items()
        if target in {"all", name}
    }
    if out is None:
        click.echo("".join(files.values()), nl=False)
    elif check:
        _check(files, out)
    else:
        _write(files, out)


def _check(files: Mapping[str, str], folder: Path) -> None:
    stale = [name for name, text in files.items() if not _holds(folder / name, text)]
    for name in stale:
        say_failure(f"{folder / name} is not what the catalogue says", None)
    if stale:
        click.echo(f"Hint: kb-mcp export all --out {folder} writes them anew.", err=True)
        found_something()
    click.echo(f"Up to date: {', '.join(files)}.")


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_bytes() == text.encode()
    except OSError:
        return False


def _write(files: Mapping[str, str], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_bytes(text.encode())
            click.echo(str(folder / name))
    except OSError as error:
        raise Failure(f"cannot write into {folder}: {error.strerror}") from None
