"""Where an embedded ledger lies: one file, whatever folder a command is started in.

Floor: the ground. Looks at the file system, changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import platformdirs

from kb_mcp.environment import SettingsError

SQLITE: Final = "sqlite:///"
VARIABLE: Final = "KEYBRAKE_DATABASE_URL"
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


def check_absolute(url: str) -> None:
    """Refuse a relative path: it would be another ledger in every folder.

    Raises: SettingsError, which names the absolute address that it stood for until now.
    """
    path = Path(url.removeprefix(SQLITE))
    if path.is_absolute():
        return
    meant = Path(os.path.abspath(path))  # noqa: PTH100 - symlinks stay as they are named
    there = "exists" if meant.is_file() else "does not exist"
    hint = f"Here it means {SQLITE}{meant}, which {there}. Set that, or another absolute path."
    raise SettingsError(VARIABLE, "is a relative path, another ledger in each folder", hint)
