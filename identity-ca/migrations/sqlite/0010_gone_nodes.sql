-- Nodes can be deleted, and what has changed of them is read alone; tokens outlive their node, so that a spent one is known
-- when it is presented again, and say which root they name.

-- The last deletion of a node: who has not heard of it reads all nodes anew.
ALTER TABLE sequence ADD COLUMN nodes_deleted INTEGER NOT NULL DEFAULT 0;
-- The number of the node's last change.
ALTER TABLE nodes ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;
UPDATE nodes SET changed = (SELECT nodes FROM sequence);
CREATE INDEX nodes_by_change ON nodes (changed);

CREATE TABLE tokens_next (
    -- SHA-256 of the secret, which is not stored.
    hash       BLOB PRIMARY KEY,
    -- Its node, which may be there no more.
    node       TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    used_ms    INTEGER,
    -- Why a token that was not used buys nothing any more.
    void       TEXT NOT NULL DEFAULT '',
    -- The root by which whoever has it knows the CA: SHA-256 of the certificate.
    root       TEXT NOT NULL DEFAULT ''
) STRICT;
INSERT INTO tokens_next
    SELECT hash, node, created_ms, expires_ms, used_ms, void,
           coalesce((SELECT max(id) FROM authorities WHERE kind = 'root' AND state = 'active'), '')
    FROM tokens;
DROP TABLE tokens;
ALTER TABLE tokens_next RENAME TO tokens;
CREATE INDEX tokens_by_node ON tokens (node);
