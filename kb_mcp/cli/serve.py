"""`kb-mcp up`, `mcp`, `sandbox` and `demo`: what runs until it is stopped.

Floor: the commands. Thin: serving itself is wiring's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import click

from kb_mcp.cli.output import Failure, WrongUse, example

PORT = click.IntRange(0, 65_535)


@click.command()
@click.option("--host", default="127.0.0.1", help="Where agents reach it.")
@click.option("--port", type=PORT, default=8787, help="0 takes a free one.")
@click.option("--admin-host", default="127.0.0.1", help="Where operators reach it.")
@click.option("--admin-port", type=PORT, default=8786, help="0 turns the operators' listener off.")
@click.option("--sandbox-port", type=PORT, default=8788,
              help="Where the sandbox listens while there is no Stripe key.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), default=1,
              help="Processes on the agents' address.")  # fmt: skip
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text",
              help="How logs are written to stderr.")  # fmt: skip
@click.option("--worker-socket", type=int, hidden=True)
@example("up --port 8787")
def up(*, log_format: Literal["text", "json"], worker_socket: int | None, **addresses: Any) -> None:
    """Serve the proxy and MCP to agents, and the admin API to operators."""
    from kb_mcp.serving.process_setup import configure_logs
    from kb_mcp.settings import load_settings
    from kb_mcp.wiring.serve import Addresses, run, serve_up, serve_worker

    configure_logs(log_format)
    if worker_socket is not None:
        run(serve_worker(load_settings(), worker_socket))
        return
    # echo flushes: whoever started us may be waiting for this very line.
    run(serve_up(load_settings(), Addresses(log_format=log_format, **addresses), click.echo))


@click.command()
def mcp() -> None:
    """Serve the tools over MCP on stdin and stdout, for one client.

    Example: KEYBRAKE_VAULT_KEY_BILLING=vk_test_… kb-mcp mcp
    """
    from kb_mcp.serving.process_setup import uncollected

    for name, stream in {"stdin": sys.stdin, "stdout": sys.stdout}.items():
        if stream is None:
            hint = "An MCP client starts this command and talks to it over stdin and stdout."
            raise WrongUse(f"{name} is closed", hint)
    with uncollected():
        from kb_mcp.settings import load_settings
        from kb_mcp.wiring.stdio import end_at_once_on_signals, ready_mcp_stdio

        end_at_once_on_signals()
        serve = ready_mcp_stdio(load_settings())
    serve()


@click.command()
@click.option("--host", default="127.0.0.1", help="Where it listens.")
@click.option("--port", type=PORT, default=8788, help="0 takes a free one.")
@click.option("--state", type=click.Path(dir_okay=False, path_type=Path),
              help="Keep its objects in this file; without it, in memory.")  # fmt: skip
@example("sandbox --port 8788 --state sandbox.db")
def sandbox(*, host: str, port: int, state: Path | None) -> None:
    """Run the sandbox alone: a stand-in for Stripe."""
    import sqlite3

    from kb_mcp.sandbox.app import Sandbox, serve
    from kb_mcp.serving.machine import host_ms, random_name

    try:
        app = Sandbox(state, clock=host_ms, new_id=random_name)
    except sqlite3.Error as error:
        raise Failure(f"cannot use {state}: {error}", "Name another file.") from None
    try:
        serve(app, host, port, on_bound=lambda url: click.echo(f"Sandbox listening on {url}"))
    except OSError as error:
        hint = "Choose another --port, or 0 for a free one."
        raise WrongUse(f"cannot listen on {host}:{port}: {error.strerror}", hint) from None
    finally:
        app.close()


@click.command()
@example("demo")
def demo() -> None:
    """Replay three ways in which agents charge twice, without kb-mcp and with it."""
    from rich.console import Console

    from kb_mcp.demo.scenarios import run_demo

    raise click.exceptions.Exit(run_demo(Console()))
