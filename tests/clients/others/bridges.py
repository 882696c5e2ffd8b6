"""What stands between a client and the server, or in place of a client's program.

Each takes the outcome to fill and the place it is tried at.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from tests.clients.installs import NODE_HOME, environ, node
from tests.clients.others.catalogue import Other
from tests.clients.others.environments import BUILD, HERE, python_in
from tests.clients.others.runtime_api import invoked
from tests.clients.others.trial import Json, Outcome, case, drive, program
from tests.proxy_processes import ProxyProcesses, cluster

READY_SECONDS_MAX: Final = 90
LOOK_AGAIN_S: Final = 0.1
OWN: Final = [sys.executable, str(HERE / "python_clients.py"), "python_sdk"]


@dataclass(frozen=True)
class Place:
    """A running proxy, a key for each tool, and a folder of the trial's own."""

    cluster: ProxyProcesses
    url: str
    keys: Mapping[str, str]
    folder: Path

    def count(self, customer: str) -> int:
        """Return how many charges of `customer` the upstream has."""
        return sum(each["customer"] == customer for each in self.cluster.charges())


def place_on(running: ProxyProcesses, folder: Path) -> Place:
    """Start a proxy, and issue keys."""
    url = running.start_proxy().url
    cap = ("--daily-cap", "10000.00usd")
    roles = {
        "audit": ("audit",),
        "billing": ("billing", *cap),
        "both": ("billing-with-status", *cap),
    }
    keys = {name: running.issue("--role", *options) for name, options in roles.items()}
    return Place(running, url, keys, folder)


def tried(other: Other, transport: str, place: Place) -> Outcome:
    """Try `other`, which is installed, over `transport`."""
    outcome = Outcome(other, transport)
    customer = re.sub(r"\W", "", f"cus_{other.name}{other.lock}{transport}")
    BY[other.by](outcome, place, customer)
    return outcome


def by_itself(outcome: Outcome, place: Place, customer: str) -> None:
    other = outcome.other
    root = other.program.startswith("stripe_")
    given = case(outcome.transport, customer, place.url, place.keys, root=root)
    command = program(other, BUILD / other.lock)
    drive(outcome, command, given, lambda: place.count(customer))


def by_mcp_remote(outcome: Outcome, place: Place, customer: str) -> None:
    given = case("stdio", customer, place.url, place.keys)
    script = BUILD / "mcp-remote" / "node_modules" / "mcp-remote" / "dist" / "proxy.js"
    header = f"Authorization: Bearer {place.keys['both']}"
    given |= {
        "command": node(),
        "args": [str(script), f"{place.url}/mcp", "--header", header, "--allow-http"],
        "env": {"PATH": environ()["PATH"], "MCP_REMOTE_CONFIG_DIR": str(place.folder)},
    }
    drive(outcome, OWN, given, lambda: place.count(customer))


def by_supergateway(outcome: Outcome, place: Place, customer: str) -> None:
    given = case("stdio", customer, place.url, place.keys)
    script = BUILD / "supergateway" / "node_modules" / "supergateway" / "dist" / "index.js"
    server = shlex.join([given["command"], *given["args"]])
    port = free_port()
    command = [node(), str(script), "--stdio", server, "--outputTransport", "streamableHttp",
               "--port", str(port)]  # fmt: skip
    with serving(command, given["env"], port):
        given |= {"url": f"http://127.0.0.1:{port}/mcp", "headers": {}}
        drive(outcome, OWN, given, lambda: place.count(customer))


def by_litellm(outcome: Outcome, place: Place, customer: str) -> None:
    given = case("http", customer, place.url, place.keys)
    server = {"url": given["url"], "transport": "http", "static_headers": given["headers"]}
    config = place.folder / "litellm.json"  # YAML takes it as it is
    settings = {"master_key": "sk-gateway"}
    config.write_text(
        json.dumps({"mcp_servers": {"billing": server}, "general_settings": settings})
    )
    port = free_port()
    venv = Path(python_in(BUILD / "litellm")).parent
    command = [str(venv / "litellm"), "--config", str(config), "--port", str(port)]
    with serving(command, {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}, port):
        given |= {
            "url": f"http://127.0.0.1:{port}/mcp/",
            "headers": {"x-litellm-api-key": "Bearer sk-gateway"},
        }
        drive(outcome, OWN, given, lambda: place.count(customer))


def by_claude(outcome: Outcome, place: Place, customer: str) -> None:
    given = case(outcome.transport, customer, place.url, place.keys)
    folder = BUILD / "claude-code" / "node_modules" / "@anthropic-ai" / "claude-code-linux-x64"
    claude = str(folder / "claude")
    add = [claude, "mcp", "add", "--scope", "user"]
    if given["url"]:
        add += ["--transport", "http", "billing", given["url"]]
        add += [f"--header={name}: {value}" for name, value in given["headers"].items()]
    else:
        pairs = (f"--env={name}={value}" for name, value in given["env"].items())
        add += ["billing", *pairs, "--", given["command"], *given["args"]]
    home = new_home(place, outcome)
    told(add, home)
    listed(outcome, place, customer, told([claude, "mcp", "list"], home))


def by_gemini(outcome: Outcome, place: Place, customer: str) -> None:
    given = case(outcome.transport, customer, place.url, place.keys)
    entry = (
        {"httpUrl": given["url"], "headers": given["headers"]}
        if given["url"]
        else {name: given[name] for name in ("command", "args", "env")}
    )
    home = new_home(place, outcome)
    (home / ".gemini").mkdir()
    settings = {
        "mcpServers": {"billing": entry},
        "security": {"folderTrust": {"enabled": False}},
    }
    (home / ".gemini" / "settings.json").write_text(json.dumps(settings))
    gemini = BUILD / "gemini-cli" / "node_modules" / ".bin" / "gemini"
    said = told([node(), str(gemini), "mcp", "list"], home, GEMINI_CLI_TRUST_WORKSPACE="true")
    listed(outcome, place, customer, said)


def by_opencode(outcome: Outcome, place: Place, customer: str) -> None:
    given = case(outcome.transport, customer, place.url, place.keys)
    entry = (
        {"type": "remote", "url": given["url"], "headers": given["headers"]}
        if given["url"]
        else {
            "type": "local",
            "command": [given["command"], *given["args"]],
            "environment": given["env"],
        }
    )
    home = new_home(place, outcome)
    config = home / ".config" / "opencode"
    config.mkdir(parents=True)
    settings = {"mcp": {"billing": {**entry, "enabled": True}}}
    (config / "opencode.json").write_text(json.dumps(settings))
    binary = BUILD / "opencode" / "node_modules" / "opencode-linux-x64" / "bin" / "opencode"
    listed(outcome, place, customer, told([str(binary), "mcp", "list"], home))


def by_localstripe(outcome: Outcome, place: Place, customer: str) -> None:
    """Charge through a proxy whose upstream is localstripe, which knows no idempotency keys."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = [python_in(BUILD / "localstripe"), "-m", "localstripe", "--port", str(port),
               "--from-scratch"]  # fmt: skip
    key = ("sk_test_localstripe", "")
    upstream = {
        "KEYBRAKE_STRIPE_KEY": key[0],
        "KEYBRAKE_STRIPE_API_BASE": base,
        "KEYBRAKE_ALLOW_UNRESTRICTED_KEY": "1",
    }
    folder = place.folder / "localstripe"
    folder.mkdir()
    with (
        serving(command, {}, port),
        httpx.Client(base_url=base, auth=key, trust_env=False) as stripe,
        cluster(folder, **upstream) as running,
    ):
        card = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2034, "cvc": "123"}
        token = stripe.post("/v1/tokens", data={f"card[{n}]": str(v) for n, v in card.items()})
        made = stripe.post("/v1/customers", data={"source": token.json()["id"]}).json()["id"]
        there = place_on(running, folder)
        given = case(outcome.transport, made, there.url, there.keys)

        def count() -> int:
            charges = stripe.get("/v1/charges", params={"customer": made}).json()["data"]
            return sum(each["status"] == "succeeded" for each in charges)

        drive(outcome, OWN, given, count)


def by_awslambdaric(outcome: Outcome, place: Place, customer: str) -> None:
    """Invoke the handler as Lambda does: its own client, and a runtime API that we serve."""
    given = case("http", customer, place.url, place.keys)
    root = HERE.parents[2]
    env = {"AWS_LAMBDA_FUNCTION_NAME": "charge", "PYTHONPATH": str(root), **given["env"]}
    command = [python_in(BUILD / "awslambdaric"), "-m", "awslambdaric",
               "kb_mcp.lambda_entry.handler"]  # fmt: skip
    try:
        for step, said in invoked(command, env, given["bill"]):
            outcome.counted[step] = place.count(customer)
            outcome.said[step] = said
    except OSError as error:
        outcome.failed = str(error)


def by_moto(outcome: Outcome, place: Place, customer: str) -> None:
    """Keep the vault keys in a Secrets Manager, in the forms of the console and of ECS."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    aws = {
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }
    command = [str(Path(python_in(BUILD / "moto")).parent / "moto_server"), "-p", str(port)]
    with serving(command, {}, port):
        billing = secret(endpoint, "billing", {"token": place.keys["billing"]})
        both = secret(endpoint, "keys", {"audit": place.keys["audit"], "other": "vk_test_none_x"})
        given = case("stdio", customer, place.url, place.keys)
        given["env"] |= aws | {
            "KEYBRAKE_VAULT_KEY_BILLING": billing,
            "KEYBRAKE_VAULT_KEY_AUDIT": f"{both}:audit::",
        }
        drive(outcome, OWN, given, lambda: place.count(customer))


BY: Final[Mapping[str, Callable[[Outcome, Place, str], None]]] = {
    "itself": by_itself,
    "mcp-remote": by_mcp_remote,
    "supergateway": by_supergateway,
    "litellm": by_litellm,
    "claude": by_claude,
    "gemini": by_gemini,
    "opencode": by_opencode,
    "localstripe": by_localstripe,
    "awslambdaric": by_awslambdaric,
    "moto": by_moto,
}


def secret(endpoint: str, name: str, members: Json) -> str:
    """Store a secret as the console does, and return its ARN."""
    import botocore.session

    client: Any = botocore.session.get_session().create_client(
        "secretsmanager", region_name="eu-west-1", endpoint_url=endpoint,
        aws_access_key_id="test", aws_secret_access_key="test",
    )  # fmt: skip
    return str(client.create_secret(Name=name, SecretString=json.dumps(members))["ARN"])


def new_home(place: Place, outcome: Outcome) -> Path:
    """Return a home folder for a program that keeps its configuration there."""
    home = place.folder / f"{outcome.other.lock}-{outcome.transport}"
    home.mkdir()
    return home


def told(command: list[str], home: Path, **more: str) -> str:
    """Run a command in `home`, and return what it said."""
    plain = {"HOME": str(home), "PATH": f"{NODE_HOME / 'bin'}{os.pathsep}/usr/bin:/bin"}
    quiet = {"DISABLE_AUTOUPDATER": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=home, env=plain | quiet | more, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=READY_SECONDS_MAX, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def listed(outcome: Outcome, place: Place, customer: str, said: str) -> None:
    """Take what a command line tool says of the server that it was given."""
    lines = [line.strip() for line in said.splitlines() if "billing" in line]
    outcome.said["list"] = " ".join(lines)
    if any("connected" in line.lower() for line in lines):
        outcome.counted["list"] = place.count(customer)
    else:
        outcome.failed = " ".join((lines or said.splitlines())[-1:])[:300] or "it said nothing"


@contextmanager
def serving(command: list[str], env: Mapping[str, str], port: int) -> Iterator[None]:
    """Run a server until the block ends, once it listens on `port`."""
    process = subprocess.Popen(
        command, env=environ() | dict(env), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + READY_SECONDS_MAX
        while not _listens(port):
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_AGAIN_S)  # it has no other word for "ready"
            if process.returncode is not None or time.monotonic() > until:
                raise OSError(f"{Path(command[0]).name} does not listen")
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as tried_socket:
        return tried_socket.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
