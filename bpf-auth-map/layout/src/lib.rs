//! Types shared between the eBPF programs and the agent.
