"""Exported heads, when several processes begin at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from kb_mcp.proxy.audit.heads import Heads
from kb_mcp.proxy.ledger.lease_owners import this_process

AT_ONCE, GONE, TIMES = 8, 20, 10


def of_the_gone(folder: Path, name: str) -> None:
    """Leave the head of a process that has ended: its pid is another's now."""
    *whose, _started, suffix = this_process(name).split("|")
    owner = "|".join((*whose, "1", suffix))
    record = {"node": name, "seq": 7, "hash": "h", "owner": owner, "began": 1, "at": 2}
    (folder / f"{name}.json").write_text(json.dumps(record))


def test_processes_that_begin_at_once_fold_the_heads_of_the_gone_and_lose_none(
    tmp_path: Path,
) -> None:
    for time in range(TIMES):
        for number in range(GONE):
            of_the_gone(tmp_path, f"gone-{time}-{number}")
        ready = Barrier(AT_ONCE)

        def begin(number: int, ready: Barrier = ready) -> None:
            heads = Heads(tmp_path, f"new-{number}", this_process(f"new-{number}"), lambda: 0)
            ready.wait(30)
            heads.retire()

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(begin, range(AT_ONCE)))
        left = Heads(tmp_path, "later", this_process("later"), lambda: 0)
        left.retire()
        lost = left.check(lambda _node, _seq: None)
        assert len({each.node for each in lost}) == len(lost) == GONE * (time + 1)
        assert [file.name for file in tmp_path.glob("*.json")] == ["retired.json"]
