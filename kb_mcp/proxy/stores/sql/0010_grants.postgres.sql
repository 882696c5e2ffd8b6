-- Which vault key an identity of a provider stands for, and for whom each request was made.

CREATE TABLE grants (
    id             TEXT PRIMARY KEY,
    issuer         TEXT NOT NULL,
    claims         TEXT NOT NULL,         -- JSON: claim to value, a prefix where it ends in *
    key_id         TEXT NOT NULL REFERENCES keys (id),
    label          TEXT,
    created_at     BIGINT NOT NULL,       -- ms UTC
    removed_at     BIGINT
);
CREATE INDEX grants_by_issuer ON grants (issuer) WHERE removed_at IS NULL;

ALTER TABLE audit ADD COLUMN subject TEXT;
CREATE INDEX audit_by_subject ON audit (subject, time COLLATE "C") WHERE subject IS NOT NULL;
