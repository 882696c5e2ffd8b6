"""Checks of a deployment, from the agent's side: `pytest --pyargs kb_mcp.enforcement`.

Set KEYBRAKE_PROXY_URL, KEYBRAKE_VAULT_KEY_BILLING and KEYBRAKE_VAULT_KEY_AUDIT as the agent has
them, and run it where the agent runs. It moves no money: every charge that it sends has an amount
of zero, which neither the proxy nor Stripe would take. It needs pytest, which the extra
`kb-mcp-billing[enforcement]` brings.

Floor: the top, a public face.
"""
