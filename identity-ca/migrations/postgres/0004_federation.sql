-- Foreign trust domains: where their bundles come from, and the last one of each.

ALTER TABLE sequence ADD COLUMN federation BIGINT NOT NULL DEFAULT 0;

CREATE TABLE federations (
    trust_domain TEXT PRIMARY KEY,
    -- Empty: the bundle is set by hand only.
    url          TEXT NOT NULL,
    -- https_web, https_spiffe, or empty.
    profile      TEXT NOT NULL,
    -- SPIFFE ID of who answers there, with https_spiffe.
    endpoint_id  TEXT NOT NULL,
    -- A serialised Bundle; none until one was fetched or set.
    bundle       BYTEA,
    created_ms   BIGINT NOT NULL,
    fetched_ms   BIGINT NOT NULL,
    tried_ms     BIGINT NOT NULL,
    problem      TEXT NOT NULL
);
