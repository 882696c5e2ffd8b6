-- A refund is an operation beside the charge that it gives back; all refunds of a charge are found
-- together.
ALTER TABLE operations ADD COLUMN gives_back TEXT;
CREATE INDEX operations_by_charge ON operations (gives_back) WHERE gives_back IS NOT NULL;

-- What an operator is shown of a refund that waits for a yes.
ALTER TABLE approvals ADD COLUMN gives_back TEXT;
