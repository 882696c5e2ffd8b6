"""Wing A, beside the agent: knows vault keys and the proxy address, and nothing else."""
