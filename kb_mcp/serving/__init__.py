"""Serving: sockets, workers, process set-up, logs."""
