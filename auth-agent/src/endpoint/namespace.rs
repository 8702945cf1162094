//! Work inside a network namespace: on a thread of its own, so that no other task ever finds itself there.

use std::fs::File;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns};
use rtnetlink::Handle;
use serde::{Deserialize, Serialize};

use super::EndpointError;

/// The longest name we take; names are file names, and `ip netns` sets no lower bound.
const MAX_NAME: usize = 200;

/// A name under `/run/netns` that cannot lead anywhere else.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamespaceName(String);

impl NamespaceName {
    /// Checks that `name` is one plain path segment.
    pub fn new(name: &str) -> Result<Self, EndpointError> {
        let plain = !name.is_empty()
            && name.len() <= MAX_NAME
            && name != "."
            && name != ".."
            && !name
                .chars()
                .any(|c| c == '/' || c.is_control() || c.is_whitespace());
        if plain {
            Ok(Self(name.to_owned()))
        } else {
            Err(EndpointError::BadName(name.chars().take(60).collect()))
        }
    }

    /// The name as given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }

    /// Opens the namespace, and tells its inode, which no other live namespace has.
    pub(super) fn open(&self) -> Result<(OwnedFd, u64), EndpointError> {
        let file = File::open(self.path()).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => EndpointError::NoNamespace(self.0.clone()),
            _ => EndpointError::Io {
                doing: format!("open {}", self.path().display()),
                source,
            },
        })?;
        let inode = file
            .metadata()
            .map_err(|source| EndpointError::Io {
                doing: format!("read {}", self.path().display()),
                source,
            })?
            .ino();
        Ok((file.into(), inode))
    }
}

impl TryFrom<String> for NamespaceName {
    type Error = EndpointError;

    fn try_from(name: String) -> Result<Self, EndpointError> {
        Self::new(&name)
    }
}

impl From<NamespaceName> for String {
    fn from(name: NamespaceName) -> Self {
        name.0
    }
}

impl std::fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// True while the namespace of that name is still the one with this inode.
pub fn exists(name: &NamespaceName, inode: u64) -> bool {
    name.open().is_ok_and(|(_, found)| found == inode)
}

/// Runs `work` inside the namespace, on a thread of its own.
///
/// # Errors
/// No such namespace, or it cannot be entered.
pub fn within<T: Send + 'static>(
    name: &NamespaceName,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, EndpointError> {
    let (namespace, _) = name.open()?;
    let failed = |doing: &str, source| EndpointError::Io {
        doing: doing.into(),
        source,
    };
    let worker = std::thread::Builder::new().name("netns".into());
    let worker = worker.spawn(move || setns(&namespace, CloneFlags::CLONE_NEWNET).map(|()| work()));
    let ended = worker
        .map_err(|source| failed("start a thread", source))?
        .join();
    let ended = ended.map_err(|_| {
        let source = std::io::Error::other("the worker ended unexpectedly");
        failed("work inside the network namespace", source)
    })?;
    ended.map_err(|errno| failed("enter the network namespace", errno.into()))
}

/// Runs `work` with a netlink handle inside the namespace.
pub(super) fn inside<F, Fut, T>(namespace: OwnedFd, work: F) -> Result<T, EndpointError>
where
    F: FnOnce(Handle) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, EndpointError>>,
    T: Send + 'static,
{
    let worker = std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| EndpointError::Io {
                doing: "enter the network namespace".into(),
                source: errno.into(),
            })?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|source| EndpointError::Io {
                    doing: "start a runtime".into(),
                    source,
                })?;
            runtime.block_on(async move {
                let (connection, handle, _) =
                    rtnetlink::new_connection().map_err(|source| EndpointError::Io {
                        doing: "open a netlink socket".into(),
                        source,
                    })?;
                let pump = tokio::spawn(connection);
                let result = work(handle).await;
                pump.abort();
                result
            })
        })
        .map_err(|source| EndpointError::Io {
            doing: "start a thread".into(),
            source,
        })?;
    worker.join().unwrap_or_else(|_| {
        Err(EndpointError::Io {
            doing: "work inside the network namespace".into(),
            source: std::io::Error::other("the worker ended unexpectedly"),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        for bad in ["", ".", "..", "a/b", "../x", "a b", "a\n", &"x".repeat(201)] {
            assert!(NamespaceName::new(bad).is_err(), "{bad:?}");
        }
        assert!(NamespaceName::new("web-1.a_b").is_ok());
    }

    #[test]
    fn a_namespace_that_is_not_there_is_named_with_the_way_to_make_it() {
        let error = NamespaceName::new("hf-absent-namespace")
            .unwrap()
            .open()
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("ip netns add hf-absent-namespace")
        );
    }
}
