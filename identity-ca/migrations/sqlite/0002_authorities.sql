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
    der           BLOB NOT NULL,
    -- The same key signed by an older root, and which.
    cross_signed  BLOB,
    cross_signer  TEXT NOT NULL,
    -- Of a request: made with the server's present issuing CA.
    endorsement   BLOB,
    -- The name of the private key's file.
    key           TEXT NOT NULL,
    not_before_ms INTEGER NOT NULL,
    not_after_ms  INTEGER NOT NULL,
    created_ms    INTEGER NOT NULL,
    -- Nothing that it signed is to be followed.
    compromised   INTEGER NOT NULL
) STRICT;

CREATE TABLE rotations (
    id          INTEGER PRIMARY KEY,
    what        TEXT NOT NULL CHECK (what IN ('root', 'issuing', 'jwt')),
    server      TEXT NOT NULL,
    stage       TEXT NOT NULL CHECK (stage IN ('prepared', 'activated', 'tainted', 'revoked', 'aborted', 'overtaken')),
    goal        TEXT NOT NULL,
    -- The new root, issuing CA or JWT key.
    incoming    TEXT NOT NULL,
    compromised INTEGER NOT NULL,
    -- The change that carried the last step to agents.
    revision    INTEGER NOT NULL,
    -- How long the present stage has lasted, by a clock that does not jump.
    waited_ms   INTEGER NOT NULL,
    -- Reason for which the next step passes stragglers; empty: it does not.
    forced      TEXT NOT NULL,
    started_ms  INTEGER NOT NULL,
    changed_ms  INTEGER NOT NULL
) STRICT;

CREATE TABLE rotation_steps (
    rotation INTEGER NOT NULL REFERENCES rotations (id),
    number   INTEGER NOT NULL,
    step     TEXT NOT NULL,
    at_ms    INTEGER NOT NULL,
    -- Who asked for it: an operator, or `schedule`.
    by_whom  TEXT NOT NULL,
    reason   TEXT NOT NULL,
    -- JSON: whom it passed by force.
    passed   TEXT NOT NULL,
    PRIMARY KEY (rotation, number)
) STRICT;

-- How far each server has taken in what it signs with.
CREATE TABLE signers (
    server  TEXT PRIMARY KEY,
    applied INTEGER NOT NULL,
    seen_ms INTEGER NOT NULL
) STRICT;

ALTER TABLE sequence ADD COLUMN retired INTEGER NOT NULL DEFAULT 0;
