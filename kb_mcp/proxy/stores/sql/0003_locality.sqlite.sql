-- What a charge costs among millions. Each index that it enters at a place of its own is a page more
-- to read, to log and to copy; one that it enters and leaves again is a page in both transactions.

-- By day first: the windows that are written lie together, however many days and customers there are.
CREATE TABLE windows_anew (
    scope          TEXT NOT NULL,         -- account, key (a lineage), customer
    scope_id       TEXT NOT NULL,
    window         TEXT NOT NULL,         -- day, month
    start          TEXT NOT NULL,         -- first day, UTC
    currency       TEXT NOT NULL,         -- '' counts sends and declines
    reserved       INTEGER NOT NULL CHECK (reserved >= 0),
    settled        INTEGER NOT NULL CHECK (settled >= 0),
    sends          INTEGER NOT NULL CHECK (sends >= 0),
    declines       INTEGER NOT NULL CHECK (declines >= 0),
    PRIMARY KEY (start, scope, scope_id, window, currency)
) STRICT, WITHOUT ROWID;
INSERT INTO windows_anew SELECT * FROM windows ORDER BY start, scope, scope_id, window, currency;
DROP TABLE windows;
ALTER TABLE windows_anew RENAME TO windows;

-- What is open is found by operations_unfinished; these two hold next to nothing.
DROP INDEX operations_to_read;
DROP INDEX operations_by_lineage_state;
CREATE INDEX operations_to_read ON operations (next_read_at) WHERE next_read_at IS NOT NULL;
CREATE INDEX operations_unknown ON operations (lineage_id) WHERE state = 'unknown';

-- Attempts find an operation by its object, but for those whose request did not tell an amount.
DROP INDEX operations_by_object;
CREATE INDEX operations_untold_by_object ON operations (object_id)
    WHERE amount = 0 AND object_id IS NOT NULL;
