-- Nodes can be deleted, and what has changed of them is read alone; tokens outlive their node, so that a spent one is known
-- when it is presented again, and say which root they name.

-- The last deletion of a node: who has not heard of it reads all nodes anew.
ALTER TABLE sequence ADD COLUMN nodes_deleted BIGINT NOT NULL DEFAULT 0;
-- The number of the node's last change.
ALTER TABLE nodes ADD COLUMN changed BIGINT NOT NULL DEFAULT 0;
UPDATE nodes SET changed = (SELECT nodes FROM sequence);
CREATE INDEX nodes_by_change ON nodes (changed);

ALTER TABLE tokens DROP CONSTRAINT tokens_node_fkey;
-- The root by which whoever has it knows the CA: SHA-256 of the certificate.
ALTER TABLE tokens ADD COLUMN root TEXT NOT NULL DEFAULT '';
UPDATE tokens SET root = coalesce((SELECT max(id) FROM authorities WHERE kind = 'root' AND state = 'active'), '');
CREATE INDEX tokens_by_node ON tokens (node);
