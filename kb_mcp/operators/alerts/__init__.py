"""Alerts: what is worth telling a person, and how it is told."""
