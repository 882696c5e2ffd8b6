"""The composition root: joins settings, stores, clocks, the two wings and the sandbox.

Floor: above the wings, below the command line and the public faces. Nothing else builds a store or
an upstream.
"""
