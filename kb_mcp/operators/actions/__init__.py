"""What an operator can do. Each action is one audited transaction."""
