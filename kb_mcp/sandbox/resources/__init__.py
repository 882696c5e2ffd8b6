"""Stripe's resources, as the sandbox plays them: a module each, a function an endpoint.

Floor: sandbox, above listing and params. Which endpoint calls what stands in `exchange.py`.
"""
