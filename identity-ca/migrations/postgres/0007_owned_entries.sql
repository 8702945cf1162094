-- Entries that follow something outside of the registry.

CREATE TABLE owned_entries (
    -- Whom the entry follows, such as kubernetes/pod/UID.
    owner TEXT PRIMARY KEY,
    -- Its ID; one that is there no more was deleted by an operator.
    entry TEXT NOT NULL
);
