//! The signed head of this server's audit log, as updates carry it to agents.

use std::sync::{Mutex, PoisonError};

use super::state::State;
use crate::audit::Position;
use crate::{now_ms, proto};

/// A log that grows all the time is not signed at every line.
const EVERY_MS: u64 = 10_000;

/// The head that was signed last.
#[derive(Debug, Default)]
pub(super) struct Heads(Mutex<Option<Signed>>);

#[derive(Debug, Clone)]
struct Signed {
    position: Position,
    /// Under which issuing CA: nobody believes it once that one's root has left the bundle.
    issuer: Option<String>,
    head: proto::AuditHead,
}

impl State {
    /// The newest signed head; none if it could not be signed.
    pub(super) fn audit_head(&self) -> Option<proto::AuditHead> {
        let position = self.audit.position();
        let issuer = self.authority.issuing_id();
        let now = now_ms();
        let mut last = self.heads.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = last.as_ref().filter(|signed| {
            signed.issuer == issuer
                && (signed.position == position || now.abs_diff(signed.head.at_ms) < EVERY_MS)
        });
        if let Some(signed) = fresh {
            return Some(signed.head.clone());
        }
        match self
            .authority
            .sign_audit_head(self.authority.server(), position, now)
        {
            Ok(head) => {
                *last = Some(Signed {
                    position,
                    issuer,
                    head: head.clone(),
                });
                Some(head)
            }
            Err(error) => {
                tracing::error!(%error, "the audit log's head is not signed");
                None
            }
        }
    }
}
