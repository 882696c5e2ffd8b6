"""The ledger: records, the snapshot of a decision, time, and the port that stores implement."""
