"""The doors: each translates one runtime's framing and decides nothing about money."""
