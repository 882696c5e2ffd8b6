"""Reading single `KEYBRAKE_*` variables, the files they name, and the secrets in them.

Floor: the ground, below settings. Reads the mapping it is given, never `os.environ`.
A message names the variable, what is wrong and what to set; it never shows a value, because
secrets land in the wrong variable too. A secret is read as people and consoles write it: plain,
quoted, with a line end, or as a member of JSON; what can mean no one secret is refused.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import platformdirs
from typing_extensions import override

# A member's name may be shown, unless somebody put a secret there.
_PLAIN_NAME = re.compile(r"(?!(?:vk|rk|sk|pk)_)[A-Za-z][A-Za-z0-9_.-]{0,39}")


class SettingsError(ValueError):
    """The settings are not valid: which variable, what is wrong, what to set instead."""

    def __init__(self, variable: str, problem: str, hint: str) -> None:
        """Say that `variable` `problem` (a verb phrase), and `hint` (a sentence)."""
        super().__init__(f"{variable} {problem}. {hint}")
        self.variable = variable
        self.problem = problem
        self.hint = hint


@dataclass(frozen=True, slots=True)
class SecretForm:
    """A secret to be found in a text: its form, `what` it is ("a vault key"), what else to set."""

    form: re.Pattern[str]
    what: str
    hint: str

    def read(self, text: str, variable: str, member: str | None = None) -> str:
        """Return the secret in the `text` of `variable`.

        `member` is the member of a JSON object to take; without it, the only one that has the form.
        Secrets Manager's console writes `{"token": "vk_…"}`.
        Raises: SettingsError.
        """
        plain, problem = _unquoted(text), f"is not {self.what}"
        if plain.startswith("{"):
            plain, problem = self._member(plain, member)
        elif member is not None:
            problem = "is no JSON object, so nothing can be taken out of it by name"
            plain = ""
        if not self.form.fullmatch(plain):
            raise SettingsError(variable, problem, self.hint)
        return plain

    def _member(self, text: str, member: str | None) -> tuple[str, str]:
        """Return a member of a JSON object, and what is wrong where it has not the form."""
        try:
            pairs = json.loads(text, object_pairs_hook=list)
        except (ValueError, RecursionError):
            return "", "is JSON that cannot be read"
        named = {name: _unquoted(value) for name, value in pairs if isinstance(value, str)}
        if len({name for name, _ in pairs}) != len(pairs):
            return "", "is JSON that has one name twice"
        if member is not None:
            if member not in named:
                return "", f"is JSON without a text named {_shown(member)}"
            return named[member], f"is not {self.what}"
        fitting = [name for name, value in named.items() if self.form.fullmatch(value)]
        if len({named[name] for name in fitting}) > 1:
            return "", f"is JSON with several: {', '.join(map(_shown, fitting))}"
        return named[fitting[0]] if fitting else "", f"is JSON without {self.what} in it"


def _unquoted(text: str) -> str:
    plain = text.strip("\ufeff \t\r\n")
    if len(plain) >= 2 and plain[0] == plain[-1] and plain[0] in "\"'":
        return plain[1:-1].strip()
    return plain


def _shown(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else "(a name that is not shown)"


SQLITE: Final = "sqlite:///"
_HOME = re.compile(r"/*(?:~|\$HOME|\$\{HOME\})(?=/|$)")
_REFERENCE = re.compile(r"\$(?:[A-Za-z_]|\{)")


def data_folder() -> Path:
    """Return the folder of the user's data, where this program keeps files by default.

    Raises: SettingsError, where the user has none: no HOME and no entry in passwd.
    """
    try:
        folder = platformdirs.user_data_path("kb-mcp", appauthor=False)
    except (RuntimeError, KeyError):  # what Python says where there is no home
        folder = Path("~")
    if not folder.is_absolute():
        hint = "Set HOME or XDG_DATA_HOME, or KEYBRAKE_DATABASE_URL=sqlite:////data/keybrake.db."
        raise SettingsError("HOME", "is not set, and this user has no home folder", hint)
    return folder


def expand_home(path: str, variable: str, environ: Mapping[str, str]) -> str:
    """Return `path` with a leading `~`, `$HOME` or `${HOME}` replaced.

    Raises: SettingsError, where there is no home, or another `$NAME` stands in it.
    """
    found = _HOME.match(path)
    if found is not None:
        home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - Path raises without one
        if not os.path.isabs(home):  # noqa: PTH117 - a text, which may be "~"
            hint = "Set an absolute path."
            raise SettingsError(variable, "names a home folder, and this user has none", hint)
        path = home.rstrip("/") + path[found.end() :]
    if _REFERENCE.search(path):
        hint = "Set the path itself; only ~ and $HOME at its start are replaced."
        raise SettingsError(variable, "holds a $… that nothing replaced", hint)
    return path


def check_absolute(url: str, variable: str) -> None:
    """Refuse a relative path: it would be another ledger in every folder.

    Raises: SettingsError, which names the absolute address that it stood for until now.
    """
    path = Path(url.removeprefix(SQLITE))
    if path.is_absolute():
        return
    meant = Path(os.path.abspath(path))  # noqa: PTH100 - symlinks stay as they are named
    there = "exists" if meant.is_file() else "does not exist"
    hint = f"Here it means {SQLITE}{meant}, which {there}. Set that, or another absolute path."
    raise SettingsError(variable, "is a relative path, another ledger in each folder", hint)


Reader = Callable[[str, str], str]
"""Takes the text of a variable and its name, and returns what it says. Raises: SettingsError."""


def plain_text(text: str, _variable: str) -> str:
    """Return `text` as it is."""
    return text


class Secret:
    """A value that does not show itself, in no repr, f-string or `dataclasses.asdict`."""

    __slots__ = ("_path", "_read", "_value", "variable")

    def __init__(
        self, value: str, variable: str, path: Path | None = None, read: Reader = plain_text
    ) -> None:
        """Wrap `value`, which `variable` holds, or the file at `path`, as `read` reads it."""
        self._value = value
        self._path = path
        self._read = read
        self.variable = variable

    def reveal(self) -> str:
        """Return the secret itself, for the one place that sends or compares it."""
        return self._value

    def reread(self) -> Secret:
        """Return the secret as its file says it now, or itself when it came without a file.

        Raises: SettingsError, when the file can no longer be read, or holds something else.
        """
        if self._path is None:
            return self
        value = self._read(_read_file(f"{self.variable}_FILE", self._path), self.variable)
        return Secret(value, self.variable, self._path, self._read)

    @override
    def __repr__(self) -> str:
        return f"Secret({self.variable})"

    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    @override
    def __hash__(self) -> int:
        return hash((Secret, self.variable))


_UNEXPANDED = re.compile(r"\$\{[^}]*\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SECONDS = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{1,3})?")
_FILE_BYTES_MAX = 65_536


def read_variable(
    environ: Mapping[str, str], variable: str, *, references: bool = False
) -> str | None:
    """Return the value of `variable`, stripped; None when it is not set.

    `references` lets a `${…}` stand, for whoever replaces it.
    Raises: SettingsError.
    """
    value = environ.get(variable)
    if value is None:
        return None
    if not references:
        check_replaced(value, variable)
    if not value.strip():
        raise SettingsError(variable, "is empty", "Set it, or leave it out altogether.")
    return value.strip()


# Readers: each takes the text of a variable and its name. Raises: SettingsError.


def flag(text: str, variable: str) -> bool:
    """Return whether `text` is `1`."""
    if text not in {"0", "1"}:
        raise SettingsError(variable, "is neither 1 nor 0", "Set 1, or leave it out.")
    return text == "1"


def plain_name(text: str, variable: str) -> str:
    """Return a plain name, fit for a log line and a database column."""
    if not _NAME.fullmatch(text):
        hint = "Use up to 64 letters, digits, dots, dashes and underscores."
        raise SettingsError(variable, "is not a plain name", hint)
    return text


def milliseconds(text: str, variable: str, *, signed: bool = False) -> int:
    """Return a number of seconds as milliseconds; above zero unless `signed`."""
    if not _SECONDS.fullmatch(text):
        raise SettingsError(variable, "is not a number of seconds", "Set e.g. 15 or 25.")
    found = int(Decimal(text) * 1000)
    if found <= 0 and not signed:
        raise SettingsError(variable, "is not above zero", "Set e.g. 15 or 25.")
    return found


def addresses(text: str, variable: str) -> tuple[str, ...]:
    """Return http(s) addresses, separated by blanks, each as it is written."""
    found = tuple(text.split())
    readable = all(is_address(each) and "," not in each for each in found)
    if not readable or len(set(found)) != len(found):
        hint = "Set addresses, each once, separated by spaces: https://idp.example."
        raise SettingsError(variable, "holds something else than addresses", hint)
    return found


def address(text: str, variable: str, *, path: bool = True) -> str:
    """Return an http(s) address without a trailing slash, and without a path unless `path`."""
    if not is_address(text, path=path):
        hint = "Set scheme, host and port alone, for example http://127.0.0.1:8787."
        raise SettingsError(variable, "is not an http(s) address", hint)
    return text.rstrip("/")


origin = partial(address, path=False)


def check_replaced(value: str, variable: str) -> None:
    """Refuse a `${…}` that a client or shell left as it is. Raises: SettingsError."""
    if _UNEXPANDED.search(value):
        hint = "Set the variable it refers to where the client or shell can see it."
        raise SettingsError(variable, "holds a ${…} that nothing replaced", hint)


def is_private_line(address: str) -> bool:
    """Say whether what is sent to `address` is encrypted, or stays on this machine."""
    parts = urlsplit(address)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Say whether `host` is this machine's own: localhost, or a loopback address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_address(value: str, *, path: bool = True) -> bool:
    """Say whether `value` is an http(s) address, with a path only where `path` allows it."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return False
    known = (
        value.isprintable() and parts.scheme in {"http", "https"} and parts.hostname and port != 0
    )
    # Userinfo would put a password into listings; a query or fragment has no use here.
    extra = "@" in parts.netloc or "?" in value or "#" in value
    return bool(known) and not extra and (path or not parts.path.strip("/"))


def _read_file(variable: str, path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        problem = f"names a file that cannot be read ({error.strerror})"
        raise SettingsError(variable, problem, "Check the path and its permissions.") from None
    # Nothing is raised from the decoding error: it carries the bytes it could not decode.
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text or len(content) > _FILE_BYTES_MAX:
        hint = "Put the secret alone into it, as UTF-8 text."
        raise SettingsError(variable, "names a file that holds no secret", hint)
    return text
