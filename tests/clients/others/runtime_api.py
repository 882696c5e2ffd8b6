"""Lambda's runtime API, as far as its client asks for it: one event after another.

Source: docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import override

from tests.clients.installs import environ

Json = dict[str, Any]
ANSWER_SECONDS_MAX = 60


def invoked(command: list[str], env: Mapping[str, str], bill: Json) -> Iterator[tuple[str, str]]:
    """Invoke the function with a charge, the same charge and a status; yield what it answered."""
    asked = {name: bill[name] for name in ("customer_id", "billing_period")}
    events = {
        "charge": event("/charge", "POST", bill),
        "again": event("/charge", "POST", bill),
        "status": event("/charge-status", "GET", asked),
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), _Api) as server:
        server.daemon_threads = True
        waiting: queue.Queue[Json] = queue.Queue()
        answers: queue.Queue[str] = queue.Queue()
        _Api.waiting, _Api.answers = waiting, answers
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        api = {"AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{server.server_address[1]}"}
        process = subprocess.Popen(
            command, env=environ() | dict(env) | api, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            for step, each in events.items():
                waiting.put(each)
                yield step, answers.get(timeout=ANSWER_SECONDS_MAX)
        except queue.Empty:
            process.kill()
            raise OSError((process.stderr.read() if process.stderr else "")[-300:]) from None
        finally:
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()
            server.shutdown()
            thread.join()


def event(path: str, method: str, values: Json) -> Json:
    """Return the event of an action group in its API form."""
    named = [{"name": n, "type": "string", "value": str(v)} for n, v in values.items()]
    body = {"content": {"application/json": {"properties": named}}}
    made: Json = {"messageVersion": "1.0", "actionGroup": "billing", "apiPath": path,
                  "httpMethod": method}  # fmt: skip
    return made | ({"parameters": named} if method == "GET" else {"requestBody": body})


class _Api(BaseHTTPRequestHandler):
    waiting: queue.Queue[Json]
    answers: queue.Queue[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps(self.waiting.get()).encode()
        self.send_response(200)
        for name, value in {
            "Lambda-Runtime-Aws-Request-Id": "1",
            "Lambda-Runtime-Deadline-Ms": "9999999999999",
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-west-1:1:function:charge",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.answers.put(self.rfile.read(int(self.headers["content-length"])).decode())
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    @override
    def log_message(self, *_: Any) -> None:
        """Keep quiet."""
