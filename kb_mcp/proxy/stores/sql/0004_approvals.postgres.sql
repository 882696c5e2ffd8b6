-- An approval holds the request that an operator is shown, whatever becomes of the operation's row.
-- What older versions asked about may since be another request: where the fingerprint shows that, or
-- does not tell, it ends, and is asked anew.

ALTER TABLE approvals
    ADD COLUMN key_id TEXT,
    ADD COLUMN endpoint TEXT,
    ADD COLUMN customer TEXT,
    ADD COLUMN amount BIGINT CHECK (amount >= 0),
    ADD COLUMN currency TEXT,
    ADD COLUMN period TEXT,
    ADD COLUMN reference TEXT,
    ADD COLUMN payment_method TEXT,
    ADD COLUMN destination TEXT;
UPDATE approvals a
   SET key_id = coalesce((SELECT k.id FROM keys AS k WHERE k.lineage_id = a.lineage_id
                  ORDER BY k.created_at DESC LIMIT 1), o.key_id),
       endpoint = o.route, customer = o.customer, amount = o.amount,
       currency = o.currency, period = o.period, reference = o.reference,
       expires_at = CASE WHEN a.state IN ('pending', 'approved') AND a.fingerprint <> o.fingerprint
                         THEN a.created_at ELSE a.expires_at END
  FROM operations o WHERE o.id = a.operation_id;
DELETE FROM approvals WHERE amount IS NULL;
ALTER TABLE approvals
    ALTER COLUMN key_id SET NOT NULL,
    ALTER COLUMN endpoint SET NOT NULL,
    ALTER COLUMN amount SET NOT NULL,
    ALTER COLUMN currency SET NOT NULL;

CREATE INDEX approvals_by_operation ON approvals (operation_id);
