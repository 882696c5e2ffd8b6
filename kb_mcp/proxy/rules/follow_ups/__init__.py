"""Follow-ups: confirm, capture, increment, update and cancel of an object that exists."""
