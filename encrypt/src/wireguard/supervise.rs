//! Watches the device and its daemon; says when they are gone, and makes them anew.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Inner;
use super::control::Control;
use crate::Health;

/// How often a device is looked for; a daemon's end is noticed at once.
const LOOK: Duration = Duration::from_secs(1);
/// How long a state stands at least, so that whoever watches hears of it.
const HEARD: Duration = Duration::from_millis(50);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// How often is looked whether somebody has changed the device.
const INSPECT: Duration = Duration::from_secs(5);

/// What has become of a device.
enum Loss {
    /// It has to be made anew.
    Gone(String),
    /// Somebody has set it down; the kernel took its routes away with that.
    Down,
}

pub(super) async fn run(inner: Arc<Inner>) {
    loop {
        let reason = match lost(&inner).await {
            Loss::Gone(reason) => reason,
            Loss::Down => {
                let reason = "the device was set down".to_owned();
                tracing::error!(device = %inner.options.name, reason, "the tunnel device is lost");
                inner.health.send_replace(Health::Lost { reason });
                sleep(HEARD).await;
                // It is raised like a new one: gates, up, routes.
                let device = inner.device();
                inner.health.send_replace(Health::Replaced { device });
                continue;
            }
        };
        tracing::error!(device = %inner.options.name, reason, "the tunnel device is lost");
        inner.raised.store(false, Ordering::Relaxed);
        inner.health.send_replace(Health::Lost { reason });
        let mut pause = FIRST_RETRY;
        while let Err(error) = inner.restore().await {
            tracing::error!(device = %inner.options.name, %error, "the tunnel device cannot be restored yet");
            sleep(pause).await;
            pause = (pause * 2).min(LAST_RETRY);
        }
        tracing::info!(device = %inner.options.name, "the tunnel device is restored");
    }
}

/// Returns when device or daemon are gone, and says how.
async fn lost(inner: &Inner) -> Loss {
    let control = Arc::clone(&inner.state.lock().await.control);
    let mut inspected = Instant::now();
    loop {
        match control.as_ref() {
            Control::Userspace(daemon) => tokio::select! {
                () = daemon.ended() => {
                    let words = daemon.last_words().map(|words| format!(": {words}")).unwrap_or_default();
                    return Loss::Gone(format!("the userspace WireGuard ended{words}"));
                }
                () = sleep(LOOK) => daemon.trim_log(),
            },
            Control::Kernel(_) => sleep(LOOK).await,
        }
        let device = inner.device();
        match inner.netlink.link_at(device.index).await {
            Ok(Some(link)) if link.name == device.name => {
                // Set before, so that one who raises it at this moment is not undone.
                if !link.up && inner.raised.swap(false, Ordering::Relaxed) {
                    return Loss::Down;
                }
            }
            Ok(_) => {
                // A daemon without its device is of no use, and would be in the way of a new one.
                if let Control::Userspace(daemon) = control.as_ref()
                    && let Err(error) = daemon.stop().await
                {
                    tracing::warn!(%error, "ending a daemon without a device");
                }
                return Loss::Gone("the device was deleted".to_owned());
            }
            Err(error) => tracing::debug!(%error, "looking for the tunnel device"),
        }
        if inspected.elapsed() >= INSPECT {
            inspected = Instant::now();
            mend(inner).await;
        }
    }
}

async fn mend(inner: &Inner) {
    match inner.mend().await {
        Ok(found) => Health::mended(&inner.health, &inner.options.name.to_string(), &found),
        Err(error) => tracing::warn!(%error, "the tunnel device cannot be inspected"),
    }
}
