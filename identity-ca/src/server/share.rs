//! What this server does for the others that share its store, and they for it:
//! it says that it is there, and takes in what they have changed. And what it
//! does on time: entries that end vanish.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::damage;
use super::state::State;
use crate::audit::Act;
use crate::authority::Moment;
use crate::registry::{HEARTBEAT_MS, Snapshot};
use crate::{Error, now_ms};

/// Changes are looked for so often, in case that a notice was lost.
const POLL: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(1);
/// Deletions are forgotten so often.
const FORGET: Duration = Duration::from_secs(3600);

/// Runs until it is aborted.
pub(super) async fn keep(state: Arc<State>) {
    tokio::join!(
        follow(&state),
        beat(&state),
        expire(&state),
        forget(&state),
        damage::look(&state)
    );
}

impl State {
    /// Takes in what other servers have changed.
    async fn refresh(self: &Arc<Self>) -> Result<(), Error> {
        // The answer may be late; it is as old as the question.
        let asked = Moment::now();
        let writing = self.lock().await;
        let before = self.now();
        if self.registry.last_number().await? != before.revisions.last {
            let after = Snapshot::load(&self.registry, &self.authority, Some(&before)).await?;
            self.snapshot.send_replace(Arc::new(after));
        }
        drop(writing);
        if self.damage().is_ok() {
            self.authority.confirm(asked);
        }
        Ok(())
    }

    /// Looks who is there, and tells agents if that is news.
    async fn look_around(&self) -> Result<(), Error> {
        self.registry.heartbeat(self.authority.server()).await?;
        let servers = self.registry.servers().await?;
        let mut addresses: Vec<String> = servers
            .iter()
            .filter(|server| server.alive && !server.address.is_empty())
            .map(|server| server.address.clone())
            .collect();
        addresses.sort();
        self.servers.send_if_modified(|known| {
            let news = **known != addresses;
            if news {
                *known = Arc::new(addresses);
            }
            news
        });
        Ok(())
    }
}

/// Hears of other servers' changes, and looks for them now and then.
async fn follow(state: &Arc<State>) {
    // None if the store is ours alone: then it is only asked whether it is still there.
    let mut notices = state.registry.notices();
    loop {
        let heard = match &mut notices {
            Some(notices) => timeout(POLL, notices.next()).await.ok(),
            None => {
                tokio::time::sleep(POLL).await;
                None
            }
        };
        if let Some(Err(error)) = heard {
            tracing::debug!(%error, "no notices from the store; trying again");
            tokio::time::sleep(RETRY).await;
        }
        if let Err(error) = state.refresh().await {
            state.notice(&error);
            tracing::warn!(%error, "cannot read the store; what is known stays in force");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Tells the others that this server is there, and looks who they are: now and then, and when one has come or gone.
async fn beat(state: &Arc<State>) {
    let mut snapshots = state.snapshot.subscribe();
    loop {
        let known = snapshots.borrow_and_update().revisions.servers;
        if let Err(error) = state.look_around().await {
            state.notice(&error);
            tracing::warn!(%error, "cannot tell the other servers that this one is there");
        }
        let news = snapshots.wait_for(|now| now.revisions.servers != known);
        if let Ok(Err(_)) = timeout(Duration::from_millis(HEARTBEAT_MS), news).await {
            return;
        }
    }
}

/// Deletes entries when their time is over.
async fn expire(state: &Arc<State>) {
    let mut snapshots = state.snapshot.subscribe();
    loop {
        let next = snapshots.borrow_and_update().entries.next_end();
        let wait = next.map_or(FORGET, |end| {
            Duration::from_millis(end.saturating_sub(now_ms())).min(FORGET)
        });
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = snapshots.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        }
        if next.is_none_or(|end| end > now_ms()) {
            continue;
        }
        if let Err(error) = prune(state).await {
            // Nobody gets anything for them meanwhile.
            tracing::warn!(%error, "expired entries are not deleted yet");
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn prune(state: &Arc<State>) -> Result<(), Error> {
    let ended = state
        .change(|state| async move { state.registry.prune_entries().await })
        .await?;
    let acts = ended.iter().map(|entry| {
        Act::done("entry.expire", "ca", &entry.spiffe_id).with("id", entry.id.as_str())
    });
    state.audit.record(acts.collect()).await
}

async fn forget(state: &Arc<State>) {
    loop {
        tokio::time::sleep(FORGET).await;
        if let Err(error) = state.registry.forget_deletions().await {
            tracing::warn!(%error, "old deletions are not forgotten yet");
        }
    }
}
