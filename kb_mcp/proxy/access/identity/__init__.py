"""Identities of a provider: tokens, grants and scopes, which stand for a vault key."""
