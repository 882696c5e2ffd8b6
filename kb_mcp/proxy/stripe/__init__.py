"""Stripe's API: what a request means, how it is sent, what an answer proves."""
