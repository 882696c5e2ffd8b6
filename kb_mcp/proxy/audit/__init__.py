"""The audit: hash chain, journal, exported heads, verification."""
