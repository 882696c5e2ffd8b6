"""Reports: what an operator looks at."""
