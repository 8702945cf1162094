-- What nodes saw of flows under rules in audit mode.

CREATE TABLE observers (
    node     TEXT PRIMARY KEY,
    -- It has reported without a long pause since then.
    since_ms INTEGER NOT NULL,
    heard_ms INTEGER NOT NULL,
    lost     INTEGER NOT NULL
);

CREATE TABLE observations (
    node        TEXT NOT NULL,
    policy      TEXT NOT NULL,
    version     INTEGER NOT NULL,
    field       TEXT NOT NULL,
    source      TEXT NOT NULL,
    destination TEXT NOT NULL,
    flows       INTEGER NOT NULL,
    unproven    INTEGER NOT NULL,
    proven_ms   INTEGER NOT NULL,
    unproven_ms INTEGER NOT NULL,
    PRIMARY KEY (node, policy, field, source, destination)
);
CREATE INDEX observations_policy ON observations (policy);
