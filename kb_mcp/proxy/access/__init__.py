"""Access: who is asking, and what a policy lets them do."""
