//! A node's life: start, the loop of inputs, and the end that cuts nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use handfast_bpf::{Events, Held};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Interval, MissedTickBehavior};

use super::agent::Agent;
use super::net::{Dialled, FromNet};
use super::park::Park;
use super::readiness::Readiness;
use super::requests::Next;
use super::start::{self, Started};
use super::tunnel_worker::Outcome;
use super::{RunError, keep_heap_together, wires};
use crate::admin::Asked;
use crate::clock;
use crate::config::AgentConfig;
use crate::core::{Connected, Event, PeerNode};
use crate::identity::{FromCa, serial_bytes};
use crate::tls::{Connection, TlsError};

/// How often things are looked at that nothing reports: certificates that are due, flows whose time is over.
const HOUSEKEEPING: Duration = Duration::from_secs(2);

/// Inputs of one kind that wait together are taken together, this many at most: others wait no longer for that.
const TOGETHER: usize = 128;

/// What was ordered of the tunnel before the end may take this long.
const LAST_ORDERS: Duration = Duration::from_millis(500);

/// Runs a node until SIGTERM, SIGINT or `detach`. The kernel goes on when it ends. `readiness` tells whoever asks
/// whether it is fit for work.
///
/// # Errors
/// What keeps it from starting; nothing is left half set up. Once it runs, it does not end by itself, but where a
/// `detach` could take away only a part.
pub async fn run(config: AgentConfig, readiness: Readiness) -> Result<(), RunError> {
    keep_heap_together();
    let Started {
        mut agent,
        net,
        ca,
        admin,
        kernel,
        tunnels,
        workload_api,
        lock: _lock,
    } = start::start(config, readiness).await?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(RunError::io("watch for SIGTERM"))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(RunError::io("watch for SIGINT"))?;
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut inputs = Inputs {
        net,
        ca,
        admin,
        kernel,
        kernel_tells: true,
        tunnels,
        interfaces: wires::watch().map_err(RunError::io("watch interfaces"))?,
        housekeeping,
        ticked: Duration::ZERO,
    };
    tracing::info!(node = %agent.node.spiffe_id, "the agent runs");
    agent.measure();
    agent.memory.started();

    loop {
        let deadline = agent.core.next_deadline();
        let input = tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            input = inputs.next(&mut agent.park, deadline) => input,
        };
        let end = match agent.take(input).await {
            Next::GoOn => continue,
            Next::Detached => {
                tracing::info!("everything is taken away");
                Ok(())
            }
            Next::HalfDetached(error) => {
                agent.stop_holding();
                Err(RunError::Refused(error))
            }
        };
        workload_api.stop().await;
        // The answer is on its way to the asker.
        tokio::time::sleep(Duration::from_millis(50)).await;
        return end;
    }
    agent.stop().await;
    workload_api.stop().await;
    Ok(())
}

/// All that the agent hears. Each is bounded; none can keep it from hearing the others.
struct Inputs {
    net: mpsc::Receiver<FromNet>,
    ca: mpsc::Receiver<FromCa>,
    admin: mpsc::Receiver<Asked>,
    kernel: Events,
    /// False after an error, until the next housekeeping.
    kernel_tells: bool,
    tunnels: mpsc::Receiver<Outcome>,
    interfaces: Arc<Notify>,
    housekeeping: Interval,
    /// When the core's deadline was last passed on.
    ticked: Duration,
}

/// One input.
enum Input {
    Net(Vec<FromNet>),
    Held(Result<Vec<Held>, RunError>),
    Kernel(Result<handfast_bpf::Event, handfast_bpf::Error>),
    Tick,
    Ca(FromCa),
    Tunnel(Outcome),
    Asked(Asked),
    Interfaces,
    KeepHouse,
}

impl Inputs {
    /// The next input, by lot among those that are there: whoever floods waits for the others. Safe to cancel.
    async fn next(&mut self, park: &mut Park, deadline: Option<Duration>) -> Input {
        let mut input = tokio::select! {
            Some(event) = self.net.recv() => Input::Net(vec![event]),
            held = park.receive() => Input::Held(held.map(|held| vec![held])),
            event = self.kernel.next(), if self.kernel_tells => Input::Kernel(event),
            () = sleep_until(deadline, self.ticked) => Input::Tick,
            Some(event) = self.ca.recv() => Input::Ca(event),
            Some(outcome) = self.tunnels.recv() => Input::Tunnel(outcome),
            Some(asked) = self.admin.recv() => Input::Asked(asked),
            () = self.interfaces.notified() => Input::Interfaces,
            _ = self.housekeeping.tick() => Input::KeepHouse,
        };
        match &mut input {
            // What waits behind it is taken along: a storm is stored once for many.
            Input::Net(events) => {
                let mut room = TOGETHER;
                while room > 0
                    && let Ok(event) = self.net.try_recv()
                {
                    room = room.saturating_sub(event.count());
                    events.push(event);
                }
            }
            Input::Held(Ok(held)) => {
                let more = std::iter::from_fn(|| park.receive().now_or_never()?.ok());
                held.extend(more.take(TOGETHER));
            }
            Input::Tick => self.ticked = clock::boot(),
            Input::Kernel(Err(_)) => self.kernel_tells = false,
            Input::KeepHouse => self.kernel_tells = true,
            _ => {}
        }
        input
    }
}

/// Ready at once when the deadline has passed, but never twice in a millisecond, whatever the deadline says.
async fn sleep_until(deadline: Option<Duration>, ticked: Duration) {
    let Some(deadline) = deadline else {
        return std::future::pending().await;
    };
    let due = deadline.max(ticked + Duration::from_millis(1));
    let left = due.saturating_sub(clock::boot());
    if !left.is_zero() {
        tokio::time::sleep(left).await;
    }
}

impl Agent {
    async fn take(&mut self, input: Input) -> Next {
        match input {
            Input::Net(events) => self.hear_net(events).await,
            Input::Held(Ok(held)) => {
                let keys = held.into_iter().map(|held| self.park.keep(held));
                let events = keys.map(Event::Held).collect();
                self.feed_all(events).await;
            }
            Input::Held(Err(error)) => {
                self.alarm(format!("held packets: {error}"));
                // Housekeeping makes it anew: that is the pause between two attempts.
                self.park.lose();
            }
            Input::Kernel(Ok(event)) => self.hear_kernel(event).await,
            Input::Kernel(Err(error)) => self.alarm(format!("events of the gates: {error}")),
            Input::Tick => self.feed(Event::Tick).await,
            Input::Ca(event) => self.hear_ca(event).await,
            Input::Tunnel(outcome) => self.hear_tunnel(outcome).await,
            Input::Asked(asked) => return self.answer(asked).await,
            Input::Interfaces => self.look_at_interfaces().await,
            Input::KeepHouse => self.keep_house().await,
        }
        Next::GoOn
    }

    /// The kernel goes on alone: nothing may wait there for an agent that is gone.
    async fn stop(&mut self) {
        tracing::info!("the agent stops; the kernel goes on");
        self.feed(Event::Stop).await;
        self.park.discard_all();
        self.stop_holding();
        self.tunnels.stop(LAST_ORDERS).await;
        // The goodbyes that were queued leave.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    fn stop_holding(&self) {
        if let Err(error) = self.gates.stop_holding() {
            tracing::error!(%error, "the gates still hold what they cannot decide");
        }
    }
}

impl Agent {
    /// Frames that came together are one step of the core.
    async fn hear_net(&mut self, events: Vec<FromNet>) {
        let mut frames = VecDeque::new();
        for event in events {
            if let FromNet::Frames(conn, came) = event {
                frames.extend(came.into_iter().map(|frame| Event::Frame { conn, frame }));
                continue;
            }
            self.feed_all(std::mem::take(&mut frames)).await;
            match event {
                FromNet::Connected(connection, dialled) => {
                    self.connected(*connection, dialled).await;
                }
                FromNet::DialFailed(peer, reason) => {
                    tracing::info!(%peer, %reason, "a peer is not reached");
                    self.feed(Event::DialFailed { peer }).await;
                }
                FromNet::Ended(conn, error) => {
                    tracing::debug!(?conn, %error, "a connection ended");
                    self.net.forget(conn);
                    self.feed(match error {
                        TlsError::Frame(_) => Event::Garbage { conn },
                        _ => Event::Disconnected { conn },
                    })
                    .await;
                }
                FromNet::Frames(..) => {}
            }
        }
        self.feed_all(frames).await;
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

    /// Packets in a device that was lost are lost, and must not stay counted: the counts begin anew with it.
    fn restore_hold(&mut self) -> Result<(), RunError> {
        self.gates.stop_holding()?;
        self.park.reopen()?;
        self.gates.attach_hold(self.park.ifindex())
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
        self.keep_plugin();
        self.adopt_running_pods().await;
        self.tell_awaited();
        self.keep_hosts().await;
        if !self.park.is_there()
            && let Err(error) = self.restore_hold()
        {
            self.park.lose();
            self.alarm(format!("hold device: {error}"));
        }
        let still_counted = self.park.retry();
        if still_counted > 0 {
            self.alarm(format!(
                "{still_counted} packets that were dropped are still counted as held"
            ));
        }
        self.retry_tunnels().await;
        self.check_filter().await;
        if let Err(error) = self.settle().await {
            self.alarm(error.to_string());
        }
        if let Err(error) = self.renew() {
            self.alarm(format!("certificates: {error}"));
        }
        if let Err(error) = self.gates.collect(clock::boot()) {
            self.alarm(format!("old connections: {error}"));
        }
        self.report_observations();
        self.memory.keep_house();
        self.measure();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn a_deadline_that_has_passed_is_due_at_the_first_look() {
        // In a flood there is no second look: the future is made anew for every input.
        let now = clock::boot();
        let due = sleep_until(Some(now), Duration::ZERO).now_or_never();
        assert!(due.is_some());
    }

    #[tokio::test]
    async fn a_deadline_that_stays_in_the_past_spins_nothing() {
        let ticked = clock::boot();
        sleep_until(Some(Duration::ZERO), ticked).await;
        assert!(clock::boot() >= ticked + MILLISECOND);
    }

    #[tokio::test]
    async fn without_a_deadline_nothing_is_due() {
        assert!(sleep_until(None, Duration::ZERO).now_or_never().is_none());
    }
}
