"""A faithful stand-in for Stripe, with a clock of its own and faults on demand.

Floor: beside the wings, which never import it. Clients reach it through Stripe's HTTP API alone;
`app` makes and serves one.
"""
