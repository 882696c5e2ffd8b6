"""The edge of the proxy: a request within its limits, taken in and answered."""
