"""What became of a send, pure: what an answer or a reading of Stripe's lists means."""
