//! A node's life: start, the loop of inputs, and the end that cuts nothing.

use std::time::Duration;

use handfast_encrypt::{Health, Tunnel};
use tokio::signal::unix::{SignalKind, signal};

use super::agent::Agent;
use super::net::{Dialled, FromNet};
use super::requests::Next;
use super::start::{self, Started};
use super::{RunError, clock, wires};
use crate::config::AgentConfig;
use crate::core::{Connected, Event, PeerNode};
use crate::identity::serial_bytes;
use crate::tls::{Connection, TlsError};

/// How often things are looked at that nothing reports: certificates that are due, flows whose time is over.
const HOUSEKEEPING: Duration = Duration::from_secs(2);

/// Runs a node until SIGTERM, SIGINT or `detach`. The kernel goes on when it ends.
///
/// # Errors
/// What keeps it from starting; nothing is left half set up. Once it runs, it does not end by itself.
pub async fn run(config: AgentConfig) -> Result<(), RunError> {
    let Started {
        mut agent,
        mut net,
        mut ca,
        mut admin,
        mut kernel,
        mut tunnel,
        lock: _lock,
    } = start::start(config).await?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(RunError::io("watch for SIGTERM"))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(RunError::io("watch for SIGINT"))?;
    let interfaces = wires::watch().map_err(RunError::io("watch interfaces"))?;
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tracing::info!(node = %agent.node.spiffe_id, "the agent runs");

    loop {
        let deadline = agent.core.next_deadline();
        tokio::select! {
            // What is waiting for a decision goes first, administrators and housekeeping last.
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(event) = net.recv() => agent.hear_net(event).await,
            held = agent.park.receive() => match held {
                Ok(held) => {
                    let key = agent.park.keep(held);
                    agent.feed(Event::Held(key)).await;
                }
                Err(error) => {
                    agent.alarm(format!("held packets: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            event = kernel.next() => match event {
                Ok(event) => agent.hear_kernel(event).await,
                Err(error) => {
                    agent.alarm(format!("events of the gates: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            () = sleep_until(deadline) => agent.feed(Event::Tick).await,
            Some(event) = ca.recv() => agent.hear_ca(event).await,
            Ok(()) = tunnel.changed() => {
                let health = tunnel.borrow_and_update().clone();
                agent.hear_tunnel(health).await;
            }
            Some(asked) = admin.recv() => {
                if agent.answer(asked).await == Next::Detached {
                    tracing::info!("everything is taken away");
                    // The answer is on its way to the asker.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    return Ok(());
                }
            }
            () = interfaces.notified() => agent.look_at_interfaces().await,
            _ = housekeeping.tick() => agent.keep_house().await,
        }
    }
    tracing::info!("the agent stops; the kernel goes on");
    agent.feed(Event::Stop).await;
    // The goodbyes that were queued leave.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

async fn sleep_until(deadline: Option<Duration>) {
    match deadline {
        Some(deadline) => {
            let left = deadline.saturating_sub(clock::boot());
            // Never a busy loop, whatever the deadline says.
            tokio::time::sleep(left.max(Duration::from_millis(1))).await;
        }
        None => std::future::pending().await,
    }
}

impl Agent {
    async fn hear_net(&mut self, event: FromNet) {
        match event {
            FromNet::Connected(connection, dialled) => self.connected(*connection, dialled).await,
            FromNet::DialFailed(peer, reason) => {
                tracing::info!(%peer, %reason, "a peer is not reached");
                self.feed(Event::DialFailed { peer }).await;
            }
            FromNet::Frame(conn, frame) => self.feed(Event::Frame { conn, frame }).await,
            FromNet::Ended(conn, error) => {
                tracing::debug!(?conn, %error, "a connection ended");
                self.net.forget(conn);
                self.feed(match error {
                    TlsError::Frame(_) => Event::Garbage { conn },
                    _ => Event::Disconnected { conn },
                })
                .await;
            }
        }
    }

    async fn connected(&mut self, connection: Connection, dialled: Dialled) {
        let Connection {
            peer,
            address,
            proofs,
            exporter,
            reader,
            writer,
            ..
        } = connection;
        let conn = self.net.register(reader, writer, proofs, exporter);
        let node = PeerNode {
            id: peer.spiffe_id.to_string(),
            name: peer.name.to_string(),
            prefixes: peer.prefixes,
            assignment: peer.assignment,
            not_after: peer.not_after,
            serial: serial_bytes(&peer.serial),
        };
        self.feed(Event::Connected(Connected {
            conn,
            node,
            dialled: matches!(dialled, Dialled::ByUs(_)),
            address: address.ip().to_canonical(),
            local_not_after: self.node.not_after,
        }))
        .await;
    }

    async fn hear_tunnel(&mut self, health: Health) {
        match health {
            Health::Good => {}
            Health::Lost { reason } => self.alarm(format!("tunnel lost: {reason}")),
            Health::Replaced { device } => {
                self.alarm(format!("tunnel device {} was made anew", device.name));
                if let Err(error) = self.restore_tunnel().await {
                    self.alarm(format!("tunnel: {error}"));
                }
            }
        }
    }

    /// Gates first: nothing passes a device that has none.
    async fn restore_tunnel(&mut self) -> Result<(), RunError> {
        self.gates.attach_tunnel(self.tunnel.device().index)?;
        self.tunnel.up().await?;
        self.apply_nodes().await
    }

    /// Workloads may have gone, and underlay interfaces may have come.
    async fn look_at_interfaces(&mut self) {
        if let Err(error) = self.sweep_endpoints().await {
            self.alarm(format!("endpoints: {error}"));
        }
        if let Err(error) = self.attach_wires().await {
            self.alarm(format!("tripwire: {error}"));
        }
    }

    async fn keep_house(&mut self) {
        if let Err(error) = self.renew() {
            self.alarm(format!("certificates: {error}"));
        }
        if let Err(error) = self.gates.collect(clock::boot()) {
            self.alarm(format!("old connections: {error}"));
        }
    }
}
