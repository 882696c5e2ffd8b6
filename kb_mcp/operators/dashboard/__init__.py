"""The dashboard: the operators' actions and reports as pages."""
