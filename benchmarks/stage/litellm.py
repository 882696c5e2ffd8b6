"""LiteLLM's proxy with a key and a budget check, from its own environment and hashed lock.

It is a proxy for language models: what it passes on is a chat completion, not a charge. Its keys
live in PostgreSQL through Prisma, whose engine is downloaded when it is set up; without it a key
is checked by LiteLLM's own hook for that (custom_auth), and its budget by LiteLLM itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from stage.children import await_port, free_port, started
from stage.contenders import Contender
from stage.machine import pinned
from stage.upstream import Upstream

NAME = "LiteLLM (chat completions)"
LOCK = Path(__file__).parents[1] / "litellm.txt"
ENVIRONMENT = Path(__file__).parents[2] / "build" / "benchmarks" / "litellm"
_TOKEN = "sk-benchmark-0123456789"  # noqa: S105 - of a server that lives for minutes
_SET_UP_S = 900
_LEAST_S = 5  # it may take a second for an answer to 32 clients
_CONFIG = """
model_list:
  - model_name: bench
    litellm_params:
      model: openai/bench
      api_base: {upstream}/v1
      api_key: none
      input_cost_per_token: 0.000001
      output_cost_per_token: 0.000001
litellm_settings:
  telemetry: false
  max_budget: 1000000
  budget_duration: 1d
general_settings:
  master_key: sk-master-0123456789
  custom_auth: keys.check
  custom_auth_run_common_checks: true
"""
_KEYS = f"""
import hmac
from litellm.proxy._types import UserAPIKeyAuth

async def check(request, api_key):
    if not hmac.compare_digest(api_key, "{_TOKEN}"):
        raise Exception("unknown key")
    return UserAPIKeyAuth(api_key=api_key, user_id="bench", max_budget=1000000.0, spend=0.0)
"""


@contextmanager
def serving(upstream: Upstream, folder: Path, core: int) -> Iterator[Contender]:
    """Run it, from an environment that `set_up` has made. Raises: FileNotFoundError."""
    program = ENVIRONMENT / "bin" / "litellm"
    if not program.exists():
        raise FileNotFoundError("it needs an environment of its own: charges.py --set-up-litellm")
    folder.mkdir()
    (folder / "config.yaml").write_text(_CONFIG.format(upstream=upstream.url))
    (folder / "keys.py").write_text(_KEYS)
    port = free_port()
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1",
               "--config", str(folder / "config.yaml")]  # fmt: skip
    inherited = os.environ.items()  # noqa: TID251 - for a child process
    env = dict(inherited) | {
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NO_DOCS": "True",
        "LITELLM_MODE": "PRODUCTION",
        "HOME": str(folder),
    }
    with started(pinned(core, command), "Proxy initialized", env=env, within_s=180) as child:
        await_port(port, within_s=120)
        url = f"http://127.0.0.1:{port}"
        _check_answers(url)
        yield Contender(
            NAME, url, [child.pid], _described(), token=_TOKEN, mode="chat", least_s=_LEAST_S
        )


def set_up() -> None:
    """Make its environment from the lock: some 100 packages, minutes of download."""
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "--disable-pip-version-check",
           "install", "--quiet", "--no-deps", "--require-hashes", "-r", str(LOCK)]  # fmt: skip
    for command in ([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], pip):
        subprocess.run(command, check=True, timeout=_SET_UP_S)


def _check_answers(url: str) -> None:
    """See that a known key is served and an unknown one is not."""
    asked = {"model": "bench", "messages": [{"role": "user", "content": "charge 29 dollars"}]}
    for token, good in ((_TOKEN, True), ("sk-other", False)):
        answer = httpx.post(
            f"{url}/v1/chat/completions", json=asked, timeout=60, trust_env=False,
            headers={"Authorization": f"Bearer {token}"},
        )  # fmt: skip
        assert answer.is_success == good, (token, answer.status_code, answer.text[:500])


def _described() -> str:
    line = next(line for line in LOCK.read_text().splitlines() if line.startswith("litellm=="))
    return (
        f"{line.split()[0]}, one worker, no database (its keys need Prisma's "
        "engine): key by custom_auth, budget by its common checks; chat completions to a stub, "
        "since it serves language models and no charges"
    )
