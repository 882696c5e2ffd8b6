-- What was paid of an invoice when it was read, so that what its payment took can be told.
ALTER TABLE operations ADD COLUMN paid_before INTEGER;
