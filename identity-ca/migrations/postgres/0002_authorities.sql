-- Roots, issuing CAs and JWT keys, and the journal of their rotation. Private
-- keys are files of the server that signs with them, never here.

CREATE TABLE authorities (
    -- Root and issuing CA: SHA-256 of the certificate; JWT key: its key ID;
    -- requested: the name of its key.
    id            TEXT PRIMARY KEY,
    kind          TEXT NOT NULL CHECK (kind IN ('root', 'issuing', 'jwt')),
    -- Who signs with it; empty for roots, which belong to all.
    server        TEXT NOT NULL,
    state         TEXT NOT NULL CHECK (state IN ('requested', 'prepared', 'active', 'superseded', 'tainted', 'retired')),
    -- The root that signed it.
    parent        TEXT NOT NULL,
    -- DER: certificate; SubjectPublicKeyInfo of a JWT key; PKCS#10 if requested.
    der           BYTEA NOT NULL,
    -- The same key signed by an older root, and which.
    cross_signed  BYTEA,
    cross_signer  TEXT NOT NULL,
    -- Of a request: made with the server's present issuing CA.
    endorsement   BYTEA,
    -- The name of the private key's file.
    key           TEXT NOT NULL,
    not_before_ms BIGINT NOT NULL,
    not_after_ms  BIGINT NOT NULL,
    created_ms    BIGINT NOT NULL,
    -- Nothing that it signed is to be followed.
    compromised   BIGINT NOT NULL
);

CREATE TABLE rotations (
    id          BIGINT PRIMARY KEY,
    what        TEXT NOT NULL CHECK (what IN ('root', 'issuing', 'jwt')),
    server      TEXT NOT NULL,
    stage       TEXT NOT NULL CHECK (stage IN ('prepared', 'activated', 'tainted', 'revoked', 'aborted', 'overtaken')),
    goal        TEXT NOT NULL,
    -- The new root, issuing CA or JWT key.
    incoming    TEXT NOT NULL,
    compromised BIGINT NOT NULL,
    -- The change that carried the last step to agents.
    revision    BIGINT NOT NULL,
    -- How long the present stage has lasted, by a clock that does not jump.
    waited_ms   BIGINT NOT NULL,
    -- Reason for which the next step passes stragglers; empty: it does not.
    forced      TEXT NOT NULL,
    started_ms  BIGINT NOT NULL,
    changed_ms  BIGINT NOT NULL
);

CREATE TABLE rotation_steps (
    rotation BIGINT NOT NULL REFERENCES rotations (id),
    number   BIGINT NOT NULL,
    step     TEXT NOT NULL,
    at_ms    BIGINT NOT NULL,
    -- Who asked for it: an operator, or `schedule`.
    by_whom  TEXT NOT NULL,
    reason   TEXT NOT NULL,
    -- JSON: whom it passed by force.
    passed   TEXT NOT NULL,
    PRIMARY KEY (rotation, number)
);

-- How far each server has taken in what it signs with.
CREATE TABLE signers (
    server  TEXT PRIMARY KEY,
    applied BIGINT NOT NULL,
    seen_ms BIGINT NOT NULL
);

ALTER TABLE sequence ADD COLUMN retired BIGINT NOT NULL DEFAULT 0;
