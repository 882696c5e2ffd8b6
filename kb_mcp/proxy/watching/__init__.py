"""What is read between requests: Stripe's lists, refunds that may fail, answers that grow old."""
