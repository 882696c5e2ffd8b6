"""The client of the proxy: what is asked of it, over the network or in this process."""
