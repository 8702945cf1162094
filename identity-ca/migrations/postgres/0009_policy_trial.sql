-- Policies that go back by themselves unless somebody confirms them in time.

CREATE TABLE policy_trial (
    id          BIGINT PRIMARY KEY CHECK (id = 1),
    -- The number of the change that put them in force: tells one trial from the next.
    number      BIGINT NOT NULL,
    began_ms    BIGINT NOT NULL,
    deadline_ms BIGINT NOT NULL,
    operator    TEXT NOT NULL
);

-- What stood under each name that the trial has changed.
CREATE TABLE policy_before (
    name TEXT PRIMARY KEY,
    -- Empty: nothing did.
    text TEXT NOT NULL
);
