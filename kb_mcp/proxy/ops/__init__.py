"""What operators do: keys, settings, unclear operations, reconciling, verifying."""
