"""Who may use the operators' listener: tokens, passwords of sessions, sessions."""
