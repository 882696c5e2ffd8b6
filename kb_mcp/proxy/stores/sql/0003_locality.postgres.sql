-- What a charge costs among millions. Each index that it enters at a place of its own is a page more
-- to read and to log; one that it enters and leaves again is a page in both transactions.

-- By day first: the windows that are written lie together, however many days and customers there are.
ALTER TABLE windows
    DROP CONSTRAINT windows_pkey,
    ADD PRIMARY KEY (start, scope, scope_id, "window", currency);
DROP INDEX windows_by_start;

-- What is open is found by operations_unfinished; these two hold next to nothing.
DROP INDEX operations_to_read;
DROP INDEX operations_by_lineage_state;
CREATE INDEX operations_to_read ON operations (next_read_at) WHERE next_read_at IS NOT NULL;
CREATE INDEX operations_unknown ON operations (lineage_id) WHERE state = 'unknown';

-- Attempts find an operation by its object, but for those whose request did not tell an amount.
DROP INDEX operations_by_object;
CREATE INDEX operations_untold_by_object ON operations (object_id)
    WHERE amount = 0 AND object_id IS NOT NULL;
