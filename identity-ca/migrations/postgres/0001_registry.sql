-- The registry. Times are unix milliseconds; lists are JSON.

-- One row: the number of the last change, and of the last change of each
-- section that agents are told of. Locked by every change.
CREATE TABLE sequence (
    id       BIGINT PRIMARY KEY CHECK (id = 1),
    last     BIGINT NOT NULL,
    bundle   BIGINT NOT NULL,
    nodes    BIGINT NOT NULL,
    entries  BIGINT NOT NULL,
    policies BIGINT NOT NULL,
    deny     BIGINT NOT NULL
);
INSERT INTO sequence VALUES (1, 0, 0, 0, 0, 0, 0);

CREATE TABLE nodes (
    name         TEXT PRIMARY KEY,
    prefixes     TEXT NOT NULL,
    underlay     TEXT NOT NULL,
    managed      BIGINT NOT NULL,
    -- Rises when prefixes are given anew.
    assignment   BIGINT NOT NULL,
    created_ms   BIGINT NOT NULL,
    joined_ms    BIGINT,
    seen_ms      BIGINT,
    acknowledged BIGINT NOT NULL DEFAULT 0,
    problem      TEXT NOT NULL DEFAULT '',
    -- SHA-256 of the public key of its last certificate.
    key_hash     BYTEA
);

CREATE TABLE tokens (
    -- SHA-256 of the secret, which is not stored.
    hash       BYTEA PRIMARY KEY,
    node       TEXT NOT NULL REFERENCES nodes (name),
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    used_ms    BIGINT
);

CREATE TABLE entries (
    id         TEXT PRIMARY KEY,
    spiffe_id  TEXT NOT NULL,
    parent     TEXT NOT NULL,
    selectors  TEXT NOT NULL,
    labels     TEXT NOT NULL,
    ttl        BIGINT,
    dns_names  TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    UNIQUE (spiffe_id, parent, selectors)
);

CREATE TABLE policies (
    name       TEXT PRIMARY KEY,
    text       TEXT NOT NULL,
    version    BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL
);

CREATE TABLE denials (
    kind     TEXT NOT NULL CHECK (kind IN ('spiffe_id', 'node', 'serial')),
    subject  TEXT NOT NULL,
    reason   TEXT NOT NULL,
    since_ms BIGINT NOT NULL,
    PRIMARY KEY (kind, subject)
);

-- Addresses that no prefix may contain: where agents reach the CA.
CREATE TABLE ca_addresses (
    address TEXT PRIMARY KEY
);

CREATE TABLE alarms (
    id     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at_ms  BIGINT NOT NULL,
    detail TEXT NOT NULL
);
