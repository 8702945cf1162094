//! One file a program. The functions here are what several of them do alike.

mod from_endpoint;
mod from_host;
mod from_tunnel;
mod hold_egress;
mod hold_ingress;
mod local;
mod outside;
mod to_endpoint;
mod to_host;
mod to_tunnel;
mod tunnel;
mod wire;
