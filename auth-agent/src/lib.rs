//! The node: SVIDs for local workloads, sessions with peers, proofs, pairs and holds.
