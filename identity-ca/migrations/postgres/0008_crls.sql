-- The newest revocation list of each issuing CA: agents of every server get those of all, and one whose key is gone
-- already has a list for as long as its certificates live.

CREATE TABLE crls (
    -- SHA-256 of the issuing CA's certificate.
    issuer  TEXT PRIMARY KEY,
    number  BIGINT NOT NULL,
    -- The list's own end.
    ends_ms BIGINT NOT NULL,
    der     BYTEA NOT NULL
);
