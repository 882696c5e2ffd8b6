"""The stores of the ledger: SQLite for one host, PostgreSQL for several. Built in wiring alone."""
