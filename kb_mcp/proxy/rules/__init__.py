"""The rules about money, pure: what may proceed, and what becomes of it."""
