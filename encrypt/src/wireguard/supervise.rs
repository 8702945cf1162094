//! Watches the device and its daemon; says when they are gone, and makes them anew.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Inner;
use super::control::Control;
use crate::Health;

/// How often a device is looked for; a daemon's end is noticed at once.
const LOOK: Duration = Duration::from_secs(1);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(10);

pub(super) async fn run(inner: Arc<Inner>) {
    loop {
        let reason = lost(&inner).await;
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
}

/// Returns when device or daemon are gone, and says how.
async fn lost(inner: &Inner) -> String {
    let control = Arc::clone(&inner.state.lock().await.control);
    loop {
        match control.as_ref() {
            Control::Userspace(daemon) => tokio::select! {
                () = daemon.ended() => {
                    let words = daemon.last_words().map(|words| format!(": {words}")).unwrap_or_default();
                    return format!("the userspace WireGuard ended{words}");
                }
                () = sleep(LOOK) => daemon.trim_log(),
            },
            Control::Kernel(_) => sleep(LOOK).await,
        }
        let device = inner.device();
        match inner.netlink.link_at(device.index).await {
            Ok(Some(link)) if link.name == device.name => {}
            Ok(_) => {
                // A daemon without its device is of no use, and would be in the way of a new one.
                if let Control::Userspace(daemon) = control.as_ref()
                    && let Err(error) = daemon.stop().await
                {
                    tracing::warn!(%error, "ending a daemon without a device");
                }
                return "the device was deleted".to_owned();
            }
            Err(error) => tracing::debug!(%error, "looking for the tunnel device"),
        }
    }
}
