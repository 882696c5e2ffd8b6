"""Where the Stripe key may be sent."""

from __future__ import annotations

import pytest

from kb_mcp.proxy.stripe.client import EgressError, check_egress


@pytest.mark.parametrize(
    ("base_url", "api_key", "allow_http"),
    [
        ("https://api.stripe.com", "rk_live_1", False),
        ("https://api.stripe.com/", "rk_live_1", False),
        ("https://api.stripe.com", "rk_test_1", False),
        ("https://stripe.example:8443", "rk_test_1", False),
        ("http://127.0.0.1:8788", "rk_test_1", False),
        ("http://[::1]:8788", "sk_test_1", False),
        ("http://localhost:8788", "rk_test_1", False),
        ("http://sandbox:8788", "rk_test_1", True),
    ],
)
def test_a_key_may_go(base_url: str, api_key: str, allow_http: bool) -> None:
    check_egress(base_url, api_key, allow_http=allow_http)


@pytest.mark.parametrize(
    ("base_url", "api_key", "allow_http", "sentence"),
    [
        ("https://stripe.example", "rk_live_1", True, "no test key"),
        ("http://api.stripe.com", "rk_live_1", True, "no test key"),
        ("http://127.0.0.1:8788", "sk_live_1", False, "no test key"),
        ("https://api.stripe.com:444", "rk_live_1", False, "no test key"),
        ("https://api.stripe.com.example", "rk_live_1", False, "no test key"),
        ("https://stripe.example", "made_up_key", False, "no test key"),
        ("http://sandbox:8788", "rk_test_1", False, "must be https"),
        ("http://127.0.0.1.example", "rk_test_1", False, "must be https"),
        ("http://2130706433", "rk_test_1", False, "must be https"),
        ("https://user@api.stripe.com", "rk_live_1", False, "nothing else"),
        ("https://api.stripe.com?a=b", "rk_live_1", False, "nothing else"),
        ("https://api.stripe.com#a", "rk_live_1", False, "nothing else"),
        ("https://api.stripe.com/v1", "rk_live_1", False, "nothing else"),
        ("http://127.0.0.1\\@stripe.example", "rk_test_1", False, "nothing else"),
        ("ftp://127.0.0.1", "rk_test_1", False, "nothing else"),
        ("https://", "rk_test_1", False, "nothing else"),
        ("", "rk_test_1", False, "nothing else"),
    ],
)
def test_a_key_may_not_go(base_url: str, api_key: str, allow_http: bool, sentence: str) -> None:
    with pytest.raises(EgressError, match=sentence) as refused:
        check_egress(base_url, api_key, allow_http=allow_http)
    assert api_key not in str(refused.value)
