"""The ledger in one SQLite file, which several processes of one host may share."""
