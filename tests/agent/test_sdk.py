"""The line to the proxy, opened when the first call needs it."""

from __future__ import annotations

import errno
from typing import Never

import pytest

from kb_mcp.agent.outcomes import ProxyUnavailableError
from kb_mcp.agent.sdk import ProxySdk

PROXY = "http://127.0.0.1:9"


def no_descriptor_left() -> Never:
    raise OSError(errno.EMFILE, "Too many open files")


def test_a_line_that_cannot_be_opened_has_sent_nothing() -> None:
    sdk = ProxySdk(PROXY, no_descriptor_left)

    with pytest.raises(ProxyUnavailableError):
        sdk.create("vk_test_billing", "charges", {"amount": 100}, "key", {})
    with pytest.raises(ProxyUnavailableError):
        sdk.describe_key("vk_test_billing", {})


def test_a_line_that_nobody_used_is_closed_without_being_opened() -> None:
    ProxySdk(PROXY, no_descriptor_left).close()
