"""Exported heads: how far each process's audit chain had come, kept outside the store.

Floor: inside the stores. A store that was restored from an older copy, or lost its tail, does not
reach its exported heads: it must send nothing until it is reconciled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kb_mcp.proxy.audit.chain import Head
from kb_mcp.proxy.ledger.lease_owners import gone_owners

EXPORT_EVERY_MS = 200
_RETIRED = "retired.json"
_LOCK = "retiring"
_SERVER = "server"


@dataclass(slots=True)
class Heads:
    """The heads of one store, a file per writing process in `folder`.

    This process exports as `node`; `owner` tells later ones whether it is gone. `now_ms` is the
    store's clock, so that a lost head tells from when on rows are missing.
    """

    folder: Path
    node: str
    owner: str
    monotonic_ms: Callable[[], int]
    now_ms: Callable[[], int] | None = None
    _began_ms: int | None = field(default=None, init=False)
    _exported_at: int = field(default=-EXPORT_EVERY_MS, init=False)
    _exported_seq: int = field(default=0, init=False)

    def export(self, head: tuple[int, str], *, force: bool = False) -> None:
        """Write `head` (number and hash), at most every EXPORT_EVERY_MS unless forced."""
        now = self.monotonic_ms()
        if head[0] in {0, self._exported_seq}:
            return
        if not force and now < self._exported_at + EXPORT_EVERY_MS:
            return
        self._exported_at = now
        record: dict[str, Any] = {"node": self.node, "seq": head[0], "hash": head[1]}
        record["owner"] = self.owner
        if self.now_ms is not None:
            at = self.now_ms()
            # The first head is exported before anything of its transaction is answered or sent.
            self._began_ms = at if self._began_ms is None else self._began_ms
            record |= {"began": self._began_ms, "at": at}
        # A full disk must not stop a conclusion; the next export tries again.
        with suppress(OSError):
            self._write(f"{self.node}.json", record)
            self._exported_seq = head[0]

    def check(self, hash_at: Callable[[str, int], str | None]) -> list[Head]:
        """Return the heads that the store does not reach; `hash_at(node, seq)` reads the store."""
        return [each for each in self._known() if hash_at(each.node, each.seq) != each.hash]

    def exported(self) -> dict[str, Head]:
        """Return the newest head of each process that was exported beside the store."""
        return {each.node: each for each in self._known()}

    def retire(self) -> None:
        """Fold the files of processes that are gone into one, so that they do not pile up.

        Where another process is at it, it does so for both.
        """
        if not self.folder.is_dir():
            return
        with _alone(self.folder / _LOCK) as alone:
            if alone:
                self._fold()

    def _fold(self) -> None:
        records = {file: _read(file) for file in self._files() if file.name != _RETIRED}
        gone = gone_owners({str(each.get("owner", "")) for each in records.values()}, self.owner)
        over = {file: each for file, each in records.items() if each.get("owner") in gone}
        if not over:
            return
        folded = {
            str(each["node"]): [each["seq"], each["hash"], each.get("began"), each.get("at")]
            for each in over.values()
        }
        self._write(_RETIRED, _read(self.folder / _RETIRED) | folded)
        for file in over:
            file.unlink(missing_ok=True)

    def server(self) -> dict[str, Any]:
        """Return which server this host saw last, where hosts share a store; empty for none."""
        return _read(self.folder / _SERVER)

    def remember(self, server: dict[str, Any]) -> None:
        """Remember `server`, for all processes of this host."""
        self._write(_SERVER, server)

    def forget(self) -> None:
        """Drop all that was exported: an operator has reconciled the store and begins anew."""
        for file in (*self._files(), self.folder / _SERVER):
            file.unlink(missing_ok=True)

    def _known(self) -> Iterable[Head]:
        for file in self._files():
            record = {} if file.name == _RETIRED else _read(file)
            if record:
                times = record.get("began"), record.get("at")
                yield Head(str(record["node"]), int(record["seq"]), str(record["hash"]), *times)
        # The last, so that what another process is folding just now is found in one of the two.
        for node, (seq, digest, *times) in _read(self.folder / _RETIRED).items():
            yield Head(node, int(seq), str(digest), *times)

    def _write(self, name: str, record: dict[str, Any]) -> None:
        """Write a file so that a reader sees all of it, or all of what was there before."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = self.folder / f"{name}.{self.node}.new"  # others may write it, too
        beside.write_text(json.dumps(record))
        beside.replace(self.folder / name)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


@contextmanager
def _alone(file: Path) -> Iterator[bool]:
    """Yield whether no other process is inside, for as long as this one is."""
    try:
        import fcntl
    except ImportError:  # not on Windows, where nobody is known to be gone, either
        yield False
        return
    with file.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
