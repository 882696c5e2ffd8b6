"""Wing B, the trust boundary: holds the Stripe key, decides, and keeps the record."""
