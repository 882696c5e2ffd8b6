"""How a command ends badly: one line and a hint on stderr, and an exit code.

Floor: at the bottom of the commands. 0 done · 1 the thing asked for failed, or a check found
something · 2 wrong usage or settings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any, NoReturn

import click
from typing_extensions import override

from kb_mcp.environment import SettingsError
from kb_mcp.serving.process_setup import collect_seldom

OURS = "kb-mcp-billing"
OTHER = "kb-mcp"


def other_distribution() -> tuple[str, str] | None:
    """Return what is wrong and what to do, where another distribution claims this package."""
    try:
        distribution(OTHER)
    except PackageNotFoundError:
        return None
    return (
        f"the distribution {OTHER}, which is another project, is installed here too, and its files "
        f"may stand in place of those of {OURS}",
        f"pip uninstall --yes {OTHER} && pip install --force-reinstall --no-deps {OURS}",
    )


FAILED, WRONG, INTERRUPTED = 1, 2, 130
# By name, so that this table imports none of the modules that raise them.
_CODES = {
    "AddressError": WRONG,
    "BindingError": WRONG,
    "CapRequiredError": WRONG,
    "CopyError": FAILED,
    "EgressError": WRONG,
    "MasterKeyError": WRONG,
    "MovedStoreError": WRONG,
    "UpstreamKeyError": WRONG,
    "MoneyError": WRONG,
    "PolicyError": WRONG,
    "SchemaError": WRONG,
    "SealBrokenError": WRONG,
    "StoreError": WRONG,
    "CommitUnknownError": FAILED,
    "KeyEndedError": FAILED,
    "KeyRequestError": WRONG,
    "LedgerUnavailableError": FAILED,
    "NoSuchKeyError": FAILED,
    "PortTakenError": WRONG,
}
_HINTS = {
    "BindingError": "`kb-mcp settings show` says what the store holds.",
    "KeyEndedError": "`kb-mcp keys list` shows every key.",
    "KeyRequestError": "docs/policies.md has every field.",
    "LedgerUnavailableError": "Nothing of it happened. `kb-mcp doctor` looks at the store.",
    "NoSuchKeyError": "`kb-mcp keys list` shows every key.",
    "PortTakenError": "Choose another port, or 0 for a free one.",
    "StoreError": "Check KEYBRAKE_DATABASE_URL and the permissions of its folder.",
}


class Failure(click.ClickException):
    """A command that did not do what it was asked for, in one line, and what to do instead."""

    def __init__(self, message: str, hint: str | None = None, exit_code: int = FAILED) -> None:
        """Say `message`, then `hint`."""
        super().__init__(message)
        self.hint = hint
        self.code = exit_code

    @override
    def show(self, file: Any = None) -> None:
        """Write the line and the hint to stderr."""
        del file
        say_failure(self.message, self.hint)


class Commands(click.Group):
    """The top group: turns every known error into one line, a hint and the right exit code."""

    @override
    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line; ends the process unless `standalone_mode` is false."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        collect_seldom()
        claimed = other_distribution()
        if claimed is not None:
            say_failure(*claimed)
            sys.exit(WRONG)
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = WRONG
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "kb-mcp"
            say_failure(error.format_message(), f"{where} --help shows what there is.")
            code = WRONG
        except click.ClickException as error:
            error.show()
            code = error.code if isinstance(error, Failure) else error.exit_code
        except click.Abort:
            code = INTERRUPTED
        except BrokenPipeError:
            # Whoever read us has had enough; stdout must not complain once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = FAILED
        sys.exit(code if isinstance(code, int) else 0)

    @override
    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, translating the errors of the project."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            failure = failure_of(error)
            if failure is None:
                raise
            raise failure from None


def failure_of(error: Exception) -> Failure | None:
    """Return how `error` is told, or None for one that nobody foresaw."""
    if isinstance(error, SettingsError):
        return Failure(f"{error.variable} {error.problem}", error.hint, WRONG)
    name = type(error).__name__
    if name not in _CODES or not type(error).__module__.startswith("kb_mcp."):
        return None
    return Failure(str(error), _HINTS.get(name), _CODES[name])


def say_failure(message: str, hint: str | None) -> None:
    """Write one line, and a hint below it, to stderr."""
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    if hint:
        click.echo(f"Hint: {' '.join(hint.split())}", err=True)


def found_something() -> NoReturn:
    """End with exit code 1: what there is to say has been said."""
    raise click.exceptions.Exit(FAILED)
