//! Who calls, and may they? Every administrative call asks this first.

use std::fmt;
use std::sync::Arc;

use spiffe::SpiffeId;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};

use super::listen::Peer;
use super::state::State;
use crate::Error;
use crate::audit::Act;
use crate::metrics;
use crate::model::Role;
use crate::now_ms;
use crate::registry::Who;

const MAX_REASON: usize = 512;

/// An operator whom the kernel or a certificate vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Operator {
    who: Who,
    role: Role,
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.who.fmt(f)
    }
}

impl Operator {
    pub(super) fn role(&self) -> Role {
        self.role
    }
}

/// The call that a message asks for (`RevokeRequest`, or a stream of some): its name without what all have.
fn call<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    let name = name.rsplit("::").next().unwrap_or(name);
    name.trim_end_matches('>').trim_end_matches("Request")
}

/// What destroys needs a reason.
pub(super) fn check_reason(reason: &str) -> Result<(), Error> {
    let printable = !reason.chars().any(char::is_control);
    if reason.trim().is_empty() || reason.len() > MAX_REASON || !printable {
        return Err(Error::invalid(
            "reason",
            format!(
                "say why (--reason), in at most {MAX_REASON} printable characters; nothing was changed"
            ),
        ));
    }
    Ok(())
}

impl State {
    /// The operator behind a call, if `needed` or more was given to them.
    pub(super) fn operator<T>(
        self: &Arc<Self>,
        request: &Request<T>,
        needed: Role,
    ) -> Result<Operator, Status> {
        let who = self.caller(request)?;
        let role = self.role_of(&who);
        match role.filter(|role| *role >= needed) {
            Some(role) => Ok(Operator { who, role }),
            None => Err(self.refuse(&who, role, needed, call::<T>())),
        }
    }

    /// Whom the kernel, or a certificate that still counts, vouches for.
    fn caller<T>(&self, request: &Request<T>) -> Result<Who, Status> {
        if let Some(info) = request.extensions().get::<UdsConnectInfo>() {
            let credentials = info.peer_cred;
            let credentials =
                credentials.ok_or_else(|| Status::unauthenticated("an unknown process"))?;
            return Ok(Who::Uid(credentials.uid()));
        }
        let peer = request.extensions().get::<Peer>();
        let svid = peer.and_then(|peer| peer.operator.as_ref()).ok_or_else(|| {
            Status::unauthenticated(
                "this call is an operator's: show the SVID of one (`handfast operator list` on the CA)",
            )
        })?;
        if svid.not_after < now_ms() / 1000 {
            return Err(Status::unauthenticated(
                "this operator's certificate has expired; connect with the next one",
            ));
        }
        let deny = &self.now().deny;
        if deny.denies_id(&svid.spiffe_id) || deny.denies_serial(&svid.serial) {
            return Err(Status::permission_denied("this operator is revoked"));
        }
        Ok(Who::Svid(svid.spiffe_id.clone()))
    }

    /// An entry whose identity has a role here gives that role to whoever gets
    /// its SVID: only who may give roles may touch it.
    pub(super) fn may_touch<'a>(
        &self,
        by: &Operator,
        ids: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), Error> {
        if by.role == Role::Admin {
            return Ok(());
        }
        let operators = &self.now().operators;
        // What is no SPIFFE ID is refused elsewhere.
        let known = |id: &&str| SpiffeId::new(*id).is_ok_and(|id| operators.knows(&id));
        match ids.into_iter().find(known) {
            Some(id) => Err(Error::Denied(format!(
                "{id} is an operator of this CA: its entries are for an admin; nothing was changed"
            ))),
            None => Ok(()),
        }
    }

    fn role_of(&self, who: &Who) -> Option<Role> {
        match who {
            // Who can read the keys needs no permission.
            Who::Uid(uid) if *uid == 0 || *uid == nix::unistd::geteuid().as_raw() => {
                Some(Role::Admin)
            }
            who => self.now().operators.role(who),
        }
    }

    fn refuse(self: &Arc<Self>, who: &Who, role: Option<Role>, needed: Role, call: &str) -> Status {
        let message = match role {
            Some(role) => format!("{who} is {role} here; this needs {needed}; nothing was changed"),
            None => format!(
                "{who} is no operator of this CA; its owner or root may make one (`handfast operator add`); nothing was changed"
            ),
        };
        let (state, source) = (Arc::clone(self), who.to_string());
        let act = Act::refused("operator.call", who, call, &message);
        // Refused it is, whether that can be written down or not.
        tokio::spawn(async move {
            if let Err(error) = state.refused(&source, act).await {
                tracing::error!(%error, "a refusal is not in the audit log");
            }
        });
        Status::permission_denied(message)
    }
}

impl State {
    /// Writes down what was refused before it could be tried.
    pub(super) async fn asked<T>(
        &self,
        act: &'static str,
        by: &Operator,
        subject: impl fmt::Display,
        asked: Result<T, Error>,
    ) -> Result<T, Error> {
        if let Err(error) = &asked {
            metrics::refused(act, error);
            let refused = Act::refused(act, by, subject, error);
            self.audit.record(vec![refused]).await?;
        }
        asked
    }

    /// Writes down how an administrative act ended, before its result leaves.
    pub(super) async fn conclude<T>(
        &self,
        act: &'static str,
        by: &Operator,
        subject: impl fmt::Display,
        result: Result<T, Error>,
        detail: impl FnOnce(Act, &T) -> Act,
    ) -> Result<T, Error> {
        let record = match &result {
            Ok(value) => detail(Act::done(act, by, &subject), value),
            Err(error) => {
                metrics::refused(act, error);
                Act::refused(act, by, &subject, error)
            }
        };
        self.audit.record(vec![record]).await?;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::call;
    use crate::proto;

    #[test]
    fn a_call_is_named_by_what_it_is_sent() {
        assert_eq!(call::<proto::RevokeRequest>(), "Revoke");
        let stream = call::<tonic::Streaming<proto::ImportEntriesRequest>>();
        assert_eq!(stream, "ImportEntries");
    }
}
