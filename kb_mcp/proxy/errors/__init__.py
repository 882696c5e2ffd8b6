"""Refusals: the closed list, and how they are written in Stripe's error shape."""
