-- Entries with all that SPIFFE users expect; states of nodes; operators; servers.

ALTER TABLE sequence ADD COLUMN operators INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sequence ADD COLUMN servers INTEGER NOT NULL DEFAULT 0;
-- Deletions of entries up to this number are no longer listed one by one.
ALTER TABLE sequence ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0;

-- Must attest again before it gets anything more.
ALTER TABLE nodes ADD COLUMN evicted INTEGER NOT NULL DEFAULT 0;
-- May not attest until the ban is lifted.
ALTER TABLE nodes ADD COLUMN banned INTEGER NOT NULL DEFAULT 0;
-- Why it was evicted or banned.
ALTER TABLE nodes ADD COLUMN reason TEXT NOT NULL DEFAULT '';
-- How it proved itself last.
ALTER TABLE nodes ADD COLUMN attestation TEXT NOT NULL DEFAULT '';
-- What its SVIDs hang on: a JSON list.
ALTER TABLE nodes ADD COLUMN authorities_in_use TEXT NOT NULL DEFAULT '[]';
UPDATE nodes SET attestation = 'join_token' WHERE joined_ms IS NOT NULL;

-- Why a token that was not used buys nothing any more.
ALTER TABLE tokens ADD COLUMN void TEXT NOT NULL DEFAULT '';

CREATE TABLE entries_next (
    id             TEXT PRIMARY KEY,
    spiffe_id      TEXT NOT NULL,
    -- SPIFFE ID of a node or of entries; empty for any node.
    parent         TEXT NOT NULL,
    selectors      TEXT NOT NULL,
    labels         TEXT NOT NULL,
    ttl            INTEGER,
    jwt_ttl        INTEGER,
    dns_names      TEXT NOT NULL,
    hint           TEXT NOT NULL,
    federates_with TEXT NOT NULL,
    created_ms     INTEGER NOT NULL,
    expires_ms     INTEGER,
    revision       INTEGER NOT NULL,
    -- The number of its last change.
    changed        INTEGER NOT NULL
) STRICT;
INSERT INTO entries_next
    SELECT id, spiffe_id, parent, selectors, labels, ttl, NULL, dns_names, '', '[]', created_ms, NULL, 1,
           (SELECT entries FROM sequence)
    FROM entries;
DROP TABLE entries;
ALTER TABLE entries_next RENAME TO entries;
CREATE INDEX entries_by_identity ON entries (spiffe_id);
CREATE INDEX entries_by_parent ON entries (parent);
CREATE INDEX entries_by_change ON entries (changed);
CREATE INDEX entries_by_expiry ON entries (expires_ms);

-- Entries that are gone, for servers that have not heard of it.
CREATE TABLE deleted_entries (
    id      TEXT PRIMARY KEY,
    changed INTEGER NOT NULL
) STRICT;
CREATE INDEX deleted_entries_by_change ON deleted_entries (changed);

CREATE TABLE operators (
    -- uid:NUMBER or a SPIFFE ID.
    name       TEXT PRIMARY KEY,
    role       TEXT NOT NULL CHECK (role IN ('auditor', 'registrar', 'admin')),
    created_ms INTEGER NOT NULL,
    created_by TEXT NOT NULL
) STRICT;

-- Servers of this CA: each tells from time to time that it is there.
CREATE TABLE servers (
    name       TEXT PRIMARY KEY,
    -- HOST:PORT for agents; empty if agents are not sent to it.
    address    TEXT NOT NULL,
    version    TEXT NOT NULL,
    started_ms INTEGER NOT NULL,
    seen_ms    INTEGER NOT NULL
) STRICT;
