-- What nodes saw of flows under rules in audit mode.

CREATE TABLE observers (
    node     TEXT PRIMARY KEY,
    -- It has reported without a long pause since then.
    since_ms BIGINT NOT NULL,
    heard_ms BIGINT NOT NULL,
    lost     BIGINT NOT NULL
);

CREATE TABLE observations (
    node        TEXT NOT NULL,
    policy      TEXT NOT NULL,
    version     BIGINT NOT NULL,
    field       TEXT NOT NULL,
    source      TEXT NOT NULL,
    destination TEXT NOT NULL,
    flows       BIGINT NOT NULL,
    unproven    BIGINT NOT NULL,
    proven_ms   BIGINT NOT NULL,
    unproven_ms BIGINT NOT NULL,
    PRIMARY KEY (node, policy, field, source, destination)
);
CREATE INDEX observations_policy ON observations (policy);
