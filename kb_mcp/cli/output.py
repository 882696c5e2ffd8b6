"""What all commands share: reading an option, printing, progress, and failures with an exit code.

Floor: at the bottom of the commands. One JSON document, or lines and tables for people; text from
clients is stripped of everything that a terminal would act on; rich is imported for a terminal
alone, and progress is drawn on a terminal's stderr. A command ends badly with one line and a hint
on stderr: 0 done · 1 the thing asked for failed, or a check found something · 2 wrong usage or
settings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from inspect import cleandoc
from typing import Any, NoReturn, TypeVar

import click
from typing_extensions import override

from kb_mcp.environment import SettingsError

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
TYPED = "kb_mcp.typed"  # the words of a command line, in the meta of its context
T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., object])
# Drawing is told of each so many rows: a bar must not slow down what it shows.
STEP = 256
Advance = Callable[[int, int | None], None]


class Failure(click.ClickException):
    """A command that did not do what it was asked for, in one line, and what to do instead."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        """Say `message`, then `hint`."""
        super().__init__(message)
        self.hint = hint

    @override
    def show(self, file: Any = None) -> None:
        """Write the line and the hint to stderr."""
        del file
        say_failure(self.message, self.hint)


class WrongUse(Failure):
    """A command line, or settings, that cannot be meant."""

    exit_code = WRONG


# By name, so that these tables import none of the modules that raise them; each with its hint.
_FAILURES = {
    "CommitUnknownError": "It may be done. Look before you run it again.",
    "CopyError": None,
    "KeyEndedError": "`kb-mcp keys list` shows every key.",
    "LedgerUnavailableError": "Nothing more was done. `kb-mcp doctor` looks at the store.",
    "NoSuchApprovalError": "`kb-mcp approvals list` shows them.",
    "NoSuchGrantError": "`kb-mcp grants list` shows them.",
    "NoSuchKeyError": "`kb-mcp keys list` shows every key.",
    "NoSuchOperationError": "`kb-mcp operations list` shows every operation.",
    "NotGrantedError": "`kb-mcp grants list` and `keys list` show them.",
    "NotPendingError": None,
}
_WRONG_USES = dict.fromkeys(
    "AddressError CapRequiredError EgressError MasterKeyError MoneyError MovedStoreError "
    "PolicyError SchemaError SealBrokenError UpstreamKeyError".split()
) | {
    "BindingError": "`kb-mcp settings show` says what the store holds.",
    "KeyRequestError": "docs/policies.md has every field.",
    "MatchError": "`kb-mcp grants add --help` has an example.",
    "PortTakenError": "Choose another port by that option; `kb-mcp up --help` has them all.",
    "StoreError": "Check KEYBRAKE_DATABASE_URL and the permissions of its folder.",
}


def failure_of(error: Exception) -> Failure | None:
    """Return how `error` is told, or None for one that nobody foresaw."""
    if isinstance(error, SettingsError):
        return WrongUse(f"{error.variable} {error.problem}", error.hint)
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else "kb-mcp"
        return WrongUse(error.format_message(), f"{where} --help shows what there is.")
    name = type(error).__name__
    if type(error).__module__.startswith("kb_mcp."):
        for kind, hints in ((Failure, _FAILURES), (WrongUse, _WRONG_USES)):
            if name in hints:
                return kind(str(error), hints[name])
    return None


@contextmanager
def told_in_our_way() -> Iterator[None]:
    """Turn what goes wrong inside into a `Failure`, and an interruption into its exit code."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        raise failure from None


def say_failure(message: str, hint: str | None) -> None:
    """Write one line, and a hint below it, to stderr."""
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    if hint:
        click.echo(f"Hint: {' '.join(hint.split())}", err=True)


def found_something() -> NoReturn:
    """End with exit code 1: what there is to say has been said."""
    raise click.exceptions.Exit(FAILED)


CELL_MAX = 200

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)


def example(line: str) -> Callable[[Command], Command]:
    """Return a decorator that ends the help of a command with an example: `kb-mcp`, and `line`."""

    def ended(command: Command) -> Command:
        command.__doc__ = f"{cleandoc(command.__doc__ or '')}\n\nExample: kb-mcp {line}"
        return command

    return ended


def read_by(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return a callback that reads an option by `parse`, whose ValueErrors say what is wrong."""

    def read(_context: click.Context, _parameter: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return read


@dataclass(frozen=True, slots=True)
class Output:
    """How a command says what came of it: in one JSON document, or in lines and tables."""

    as_json: bool = False

    def json(self, document: object) -> None:
        """Print one JSON document."""
        import msgspec

        # Of ten thousand keys json.dumps, which indents in Python, takes a third of a second.
        click.echo(msgspec.json.format(msgspec.json.encode(document, enc_hook=str), indent=2))

    def done(self, record: Mapping[str, Any], said: str) -> None:
        """Print what came of an act: its record, or a sentence for people."""
        if self.as_json:
            self.json(record)
        else:
            click.echo(said)

    def list(self, records: Sequence[Any], columns: str, empty: str) -> None:
        """Print records: an array of objects, or a table of `columns`; `empty` where none are."""
        if self.as_json:
            self.json(list(records))
        elif not records:
            click.echo(empty)
        else:
            names = columns.split()
            rows = [[cell(record.get(name)) for name in names] for record in records]
            _print_table([name.replace("_", " ") for name in names], rows)

    def record(self, record: Mapping[str, Any]) -> None:
        """Print one record: an object, or a line for each field that has a value."""
        if self.as_json:
            self.json(record)
            return
        shown = {name: value for name, value in record.items() if value not in (None, [], {})}
        width = max(map(len, shown), default=0)
        for name, value in shown.items():
            if isinstance(value, list) and value and isinstance(value[0], Mapping):
                for item in value:
                    pairs = (
                        f"{key}={cell(part)}" for key, part in item.items() if part is not None
                    )
                    click.echo(f"{name.rstrip('s'):<{width}}  {' '.join(pairs)}")
            else:
                click.echo(f"{name:<{width}}  {cell(value)}")

    @contextmanager
    def progress(self, label: str) -> Iterator[Advance]:
        """Draw a bar while the body runs, which tells how many are done, and of how many if known.

        Nothing is drawn beside JSON, or where stderr is no terminal.
        """
        if self.as_json or not sys.stderr.isatty():
            yield lambda _done, _total: None
            return
        from rich import progress as bars
        from rich.console import Console

        columns = (
            *(bars.TextColumn("{task.description}"), bars.BarColumn()),
            *(bars.MofNCompleteColumn(), bars.TimeElapsedColumn()),
        )
        with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def cell(value: object) -> str:
    """Write a value for people; nothing in it moves a cursor or breaks a line."""
    from kb_mcp.proxy.audit.chain import clean_text

    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return clean_text(text, CELL_MAX)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if sys.stdout.isatty():
        _print_rich(columns, rows)
        return
    widths = [max(len(row[at]) for row in (columns, *rows)) for at in range(len(columns))]
    for row in (columns, *rows):
        line = "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        # As Text, so that square brackets in a label are no markup.
        table.add_row(*(Text(text) for text in row))
    Console().print(table)


def counted(items: Iterable[T], advance: Advance, total: int | None) -> Iterator[T]:
    """Yield `items` and tell `advance` how many have passed; it never holds more than one."""
    done = 0
    for item in items:
        done += 1
        if done % STEP == 0:
            advance(done, total)
        yield item
    advance(done, total)
