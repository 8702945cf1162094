//! Watches the device, and how keys are used: changes keys that are due, and takes old ones away.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Inner;
use crate::Health;

/// How often the device is looked for, at least.
const LOOK: Duration = Duration::from_secs(1);
/// How long a state stands at least, so that whoever watches hears of it.
const HEARD: Duration = Duration::from_millis(50);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(10);

pub(super) async fn run(inner: Arc<Inner>) {
    let mut tended = Instant::now();
    loop {
        sleep(inner.options.look.min(LOOK)).await;
        if tended.elapsed() >= inner.options.look {
            tended = Instant::now();
            if let Err(error) = inner.tend(false).await {
                tracing::error!(%error, "keys of the tunnel cannot be tended; it is tried again");
            }
            mend(&inner).await;
        }
        let device = inner.device();
        match inner.netlink.link_at(device.index).await {
            Ok(Some(link)) if link.name == device.name => {
                // Set before, so that one who raises it at this moment is not undone.
                if !link.up && inner.raised.swap(false, Ordering::Relaxed) {
                    let reason = "the device was set down".to_owned();
                    tracing::error!(device = %inner.options.name, reason, "the tunnel device is lost");
                    inner.health.send_replace(Health::Lost { reason });
                    sleep(HEARD).await;
                    // It is raised like a new one: gates, up, routes.
                    inner.health.send_replace(Health::Replaced { device });
                }
            }
            Ok(_) => replace(&inner).await,
            Err(error) => tracing::debug!(%error, "looking for the tunnel device"),
        }
    }
}

async fn mend(inner: &Inner) {
    match inner.mend().await {
        Ok(found) => Health::mended(&inner.health, &inner.options.name.to_string(), &found),
        Err(error) => tracing::warn!(%error, "the tunnel's policies cannot be inspected"),
    }
}

async fn replace(inner: &Inner) {
    inner.raised.store(false, Ordering::Relaxed);
    let reason = "the device was deleted".to_owned();
    tracing::error!(device = %inner.options.name, reason, "the tunnel device is lost");
    inner.health.send_replace(Health::Lost { reason });
    let mut pause = FIRST_RETRY;
    while let Err(error) = inner.restore().await {
        tracing::error!(device = %inner.options.name, %error, "the tunnel device cannot be restored yet");
        sleep(pause).await;
        pause = (pause * 2).min(LAST_RETRY);
    }
    tracing::info!(device = %inner.options.name, "the tunnel device is restored");
}
