"""The admin API: the operators' actions and reports as JSON."""
