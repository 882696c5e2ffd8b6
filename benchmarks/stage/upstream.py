"""The one upstream of every contender: nginx, answering in C, so that the proxies are measured.

Charges get an id of their own and are noted in a log, by the idempotency key they came with; a
chat completion is answered too, for proxies of language models.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stage.children import Child, await_port, free_port, started
from stage.machine import pinned, tool

UPSTREAM_KEY = "rk_test_benchmark"
_SETTLE_S = 10
_PAD = "x" * 640  # about 1 KB in all
_CHARGE = {"object": "charge", "amount": 100, "amount_captured": 100, "amount_refunded": 0,
           "captured": True, "currency": "usd", "disputed": False, "livemode": False,
           "paid": True, "refunded": False, "status": "succeeded",
           "description": _PAD}  # fmt: skip
_LIST = {"object": "list", "url": "/v1", "has_more": False, "data": []}
_CHAT = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "bench",
         "choices": [{"index": 0, "finish_reason": "stop",
                      "message": {"role": "assistant", "content": "done"}}],
         "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}}  # fmt: skip
_CONFIG = """
daemon off; master_process off; pid {folder}/upstream.pid; error_log {folder}/upstream.error;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
  log_format keys escape=none "$request_method $status $http_idempotency_key";
  access_log off; {temporary}
  keepalive_requests 1000000000; keepalive_timeout 600s; tcp_nodelay on;
  default_type application/json;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    add_header Request-Id req_$request_id;
    location ~ ^/v1/(payment_intents|refunds)$ {{ return 200 '{list}'; }}
    location = /v1/charges {{
      if ($request_method = GET) {{ return 200 '{list}'; }}
      access_log {folder}/upstream.log keys buffer=64k flush=100ms;
      return 200 '{{"id": "ch_$request_id", {charge}';
    }}
    location ~ ^/v1/charges/(?<charge_id>[A-Za-z0-9_]+)$ {{
      return 200 '{{"id": "$charge_id", {charge}';
    }}
    location = /v1/account {{ return 200 '{{"id": "acct_benchmark", "object": "account"}}'; }}
    location = /v1/chat/completions {{ return 200 '{chat}'; }}
    location / {{ return 404 '{{"error": {{"type": "invalid_request_error"}}}}'; }}
  }}
}}
"""


@dataclass
class Upstream:
    """A running upstream. `seen` counts the keys of the charges that arrived since `forget`."""

    url: str
    child: Child
    log: Path
    offset: int = 0
    config: str = "nginx, one process, `return 200` with 1 KB of JSON and an id of its own"

    def forget(self) -> None:
        """Count from here on."""
        self.offset = self.log.stat().st_size if self.log.exists() else 0

    def seen(self, enough: Callable[[Counter[str]], bool]) -> Counter[str]:
        """Return how often each key arrived, once that is `enough` or nothing more comes.

        The log is written late, and what an earlier run left under way may arrive in between.
        """
        until = time.monotonic() + _SETTLE_S
        while True:
            keys = Counter(line.split(" ", 2)[2] for line in self._lines())
            if enough(keys) or time.monotonic() > until:
                return keys
            time.sleep(0.05)

    def _lines(self) -> list[str]:
        with self.log.open(encoding="ascii") as file:
            file.seek(self.offset)
            return file.read().split("\n")[:-1]


@contextmanager
def upstream(folder: Path, core: int) -> Iterator[Upstream]:
    """Run the upstream on `core`."""
    port = free_port()
    config = folder / "upstream.conf"
    config.write_text(
        _CONFIG.format(
            folder=folder, port=port, charge=json.dumps(_CHARGE)[1:], chat=json.dumps(_CHAT),
            list=json.dumps(_LIST),
            temporary=temporary_paths(folder),
        )
    )  # fmt: skip
    log = folder / "upstream.log"
    log.touch()
    with nginx(config, core, port) as child:
        yield Upstream(f"http://127.0.0.1:{port}", child, log)


@contextmanager
def nginx(config: Path, core: int, port: int) -> Iterator[Child]:
    """Run nginx on `config`, in the foreground and without privileges of its own."""
    program = tool("nginx")
    assert program is not None, "nginx is absent"
    # nginx says nothing of itself when all is well: a line of ours, then nginx in its place.
    script = f"echo begun; exec {program} -c {config} -e {config}.error"
    with started(pinned(core, ["sh", "-c", script]), "begun") as child:
        await_port(port)
        yield child


def temporary_paths(folder: Path) -> str:
    """Return where nginx may write, so that it needs no directory of the system's."""
    kinds = "client_body proxy fastcgi uwsgi scgi".split()
    return " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
