-- A CA that was restored waits until its agents have shown who was revoked since.

CREATE TABLE recovery (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    since_ms    INTEGER NOT NULL,
    -- The newest deny list that was heard.
    deny_number INTEGER NOT NULL
);

CREATE TABLE recovery_heard (
    node   TEXT PRIMARY KEY,
    number INTEGER NOT NULL
);
