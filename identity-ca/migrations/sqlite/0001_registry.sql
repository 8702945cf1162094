-- The registry. Times are unix milliseconds; lists are JSON.

-- One row: the number of the last change, and of the last change of each
-- section that agents are told of. Locked by every change.
CREATE TABLE sequence (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    last     INTEGER NOT NULL,
    bundle   INTEGER NOT NULL,
    nodes    INTEGER NOT NULL,
    entries  INTEGER NOT NULL,
    policies INTEGER NOT NULL,
    deny     INTEGER NOT NULL
) STRICT;
INSERT INTO sequence VALUES (1, 0, 0, 0, 0, 0, 0);

CREATE TABLE nodes (
    name         TEXT PRIMARY KEY,
    prefixes     TEXT NOT NULL,
    underlay     TEXT NOT NULL,
    managed      INTEGER NOT NULL,
    -- Rises when prefixes are given anew.
    assignment   INTEGER NOT NULL,
    created_ms   INTEGER NOT NULL,
    joined_ms    INTEGER,
    seen_ms      INTEGER,
    acknowledged INTEGER NOT NULL DEFAULT 0,
    problem      TEXT NOT NULL DEFAULT '',
    -- SHA-256 of the public key of its last certificate.
    key_hash     BLOB
) STRICT;

CREATE TABLE tokens (
    -- SHA-256 of the secret, which is not stored.
    hash       BLOB PRIMARY KEY,
    node       TEXT NOT NULL REFERENCES nodes (name),
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    used_ms    INTEGER
) STRICT;

CREATE TABLE entries (
    id         TEXT PRIMARY KEY,
    spiffe_id  TEXT NOT NULL,
    parent     TEXT NOT NULL,
    selectors  TEXT NOT NULL,
    labels     TEXT NOT NULL,
    ttl        INTEGER,
    dns_names  TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    UNIQUE (spiffe_id, parent, selectors)
) STRICT;

CREATE TABLE policies (
    name       TEXT PRIMARY KEY,
    text       TEXT NOT NULL,
    version    INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE denials (
    kind     TEXT NOT NULL CHECK (kind IN ('spiffe_id', 'node', 'serial')),
    subject  TEXT NOT NULL,
    reason   TEXT NOT NULL,
    since_ms INTEGER NOT NULL,
    PRIMARY KEY (kind, subject)
) STRICT;

-- Addresses that no prefix may contain: where agents reach the CA.
CREATE TABLE ca_addresses (
    address TEXT PRIMARY KEY
) STRICT;

CREATE TABLE alarms (
    id     INTEGER PRIMARY KEY,
    at_ms  INTEGER NOT NULL,
    detail TEXT NOT NULL
) STRICT;
