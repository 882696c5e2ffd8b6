"""Keys that are none, are no longer, are another's, or are shown in another way."""

from __future__ import annotations

import base64

from tests.attacks.attack import Attack

_UNKNOWN = {
    "another word": "Bearer password",
    "a Stripe secret key": "Bearer sk_live_51Hq0000000000000000000000",
    "a Stripe restricted key": "Bearer rk_test_sandbox",
    "well formed, never issued": "Bearer vk_test_abcdefghijkl_" + "a" * 47,
    "the id alone": "Bearer vk_test_abcdefghijkl",
    "prefix in capitals": "Bearer VK_TEST_abcdefghijkl_" + "a" * 47,
    "something in front": "Bearer x{token}",
    "something behind": "Bearer {token}x",
    "something behind a blank": "Bearer {token} x",
    "the token twice": "Bearer {token},{token}",
    "in quotes": 'Bearer "{token}"',
    "a bearer of a bearer": "Bearer Bearer {token}",
    "SQL": "Bearer vk_test_' OR 1=1 --",
    "a wildcard": "Bearer vk_test_%",
    "of another alphabet": "Bearer vk_test_\xe9",
    "very long": "Bearer vk_test_" + "a" * 8_000,
    "a file": "Bearer ../../ledger.db",
}
_MISSING = {
    "empty": "",
    "only a scheme": "Bearer",
    "scheme and blank": "Bearer ",
    "no scheme": "{token}",
    "another scheme": "Digest {token}",
    "Token": "Token {token}",
    "glued": "Bearer{token}",
    "with a colon": "Bearer: {token}",
    "Basic that is no base 64": "Basic {token}",
    "Basic that is empty": "Basic " + base64.b64encode(b":").decode(),
    "Basic with the user in the password": "Basic " + base64.b64encode(b":vk_test_x").decode(),
    "Basic of no ASCII": "Basic " + base64.b64encode("é:".encode()).decode(),
}
_ELSEWHERE = {
    "in X-Api-Key": ("X-Api-Key: {token}",),
    "in a cookie": ("Cookie: Authorization=Bearer {token}",),
    "in Proxy-Authorization": ("Proxy-Authorization: Bearer {token}",),
    "in X-Authorization": ("X-Authorization: Bearer {token}",),
}

ATTACKS = (
    *(Attack(family="keys", name=name, authorization=value, code="vault_key_unknown")
      for name, value in _UNKNOWN.items()),
    *(Attack(family="keys not shown", name=name, authorization=value, code="vault_key_missing")
      for name, value in _MISSING.items()),
    *(Attack(family="keys not shown", name=name, authorization=None, headers=lines,
             code="vault_key_missing") for name, lines in _ELSEWHERE.items()),
    *(Attack(family="keys not shown", name=name, target=f"/v1/charges?{name}={{token}}",
             authorization=None, code="vault_key_missing")
      for name in ("access_token", "api_key", "authorization")),
    Attack(family="keys not shown", name="none at all", authorization=None,
           code="vault_key_missing"),
    Attack(family="keys not shown", name="two, both good", code="vault_key_missing",
           headers=("Authorization: Bearer {token}",)),
    Attack(family="keys not shown", name="a good one and a Stripe key", code="vault_key_missing",
           headers=("Authorization: Bearer sk_test_1",)),
    Attack(family="keys not shown", name="a Basic one beside", code="vault_key_missing",
           headers=("Authorization: Basic dms6",)),
    Attack(family="keys", name="of the other mode", key="live", code="vault_key_unknown"),
    Attack(family="keys", name="right id, another secret", key="forged", code="vault_key_unknown"),
    Attack(family="keys", name="expired", key="expired", code="vault_key_expired"),
    Attack(family="keys", name="revoked", key="revoked", code="vault_key_revoked"),
    Attack(family="keys", name="revoked, reading", key="revoked", policy="audit", method="GET",
           target="/v1/charges/ch_1", code="vault_key_revoked"),
    Attack(family="keys", name="revoked, asking for itself", key="revoked", method="GET",
           target="/keybrake/v1/key", code="vault_key_revoked"),
    Attack(family="keys", name="expired, asking for bills", key="expired", method="GET",
           policy="audit", target="/keybrake/v1/operations?charge_id=ch_1",
           code="vault_key_expired"),
    Attack(family="keys", name="frozen", key="frozen", code="vault_key_frozen"),
    Attack(family="keys", name="no key, asking for a key", authorization=None, method="GET",
           target="/keybrake/v1/key", code="vault_key_missing"),
    Attack(family="keys", name="accepted: scheme in capitals", authorization="BEARER {token}",
           code=None),
    Attack(family="keys", name="accepted: more blanks", authorization="bearer   {token}",
           code=None),
    Attack(family="keys not shown", name="accepted neighbour", code=None),
)  # fmt: skip
