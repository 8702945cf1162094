//! Policies in force: read all together or not at all, compiled into the gates' map, told to the core.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use handfast_policies::{PolicySet, Source};

use super::RunError;
use super::agent::Agent;
use super::pairings::Pairings;
use super::policy::Change;
use crate::config::AgentConfig;
use crate::core::{Event, Policy};
use crate::identity::KnownPolicy;

/// Prefixes that rules name: within the map of them, with room for the node's own addresses.
const MAX_PREFIXES: usize = 60_000;

impl Agent {
    /// Reads the policies of the CA and of the folders that the agent was given, together; all of them or none.
    pub(super) async fn apply_policies(&mut self) -> Result<(), RunError> {
        let read = local_documents(&self.config.policy_paths).and_then(|local| {
            // The next version of what is in force: rules that stay keep their numbers, and what is the same
            // costs nothing.
            let set = read(self.policy.set(), &self.knowledge.policies, &local)?;
            Ok((set, local))
        });
        match read {
            Ok((set, local)) => {
                self.policy_error = None;
                self.policy_version += 1;
                self.knowledge.local_policies = local;
                self.set_policies(set).await
            }
            Err(error) => {
                self.policy_error = Some(error.clone());
                Err(RunError::Policy(format!(
                    "policies are not applied, the last good ones stay in force: {error}"
                )))
            }
        }
    }

    /// At a start: the same, and where that fails what was in force before. Without either the agent does not start,
    /// since it would have to guess.
    pub(super) async fn resume_policies(&mut self) -> Result<(), RunError> {
        let Err(error) = self.apply_policies().await else {
            return Ok(());
        };
        let in_force = self.policy.set();
        let last = read(
            in_force,
            &self.knowledge.policies,
            &self.knowledge.local_policies,
        );
        let set = last.map_err(|_| error)?;
        self.alarm(format!(
            "policies cannot be read, the last good ones stay in force: {}",
            self.policy_error.as_deref().unwrap_or_default()
        ));
        self.set_policies(set).await
    }

    /// New policies, or new entries of the old ones: into the map, then to the core.
    async fn set_policies(&mut self, set: PolicySet) -> Result<(), RunError> {
        let set = Arc::new(set);
        let changes = self.policy.replace_set(Arc::clone(&set));
        let cidrs = self.gates.write_cidrs(self.policy.cidrs());
        let written = self.write_policy_anew(&changes);
        self.feed(Event::Policy(Policy(Arc::new(Pairings::new(set)))))
            .await;
        cidrs.and(written)
    }

    /// Writes changes that concern flows that exist: they are decided anew.
    pub(super) fn write_policy_anew(&mut self, changes: &[Change]) -> Result<(), RunError> {
        let written = self.write_policy(changes);
        if !changes.is_empty() {
            self.gates.bump_policy_revision()?;
        }
        written
    }

    /// Writes all that can be written, removals in any case. What the kernel refuses is tried again. Where it refuses
    /// what narrows an endpoint's policy, nothing of that endpoint may pass until it stands.
    pub(super) fn write_policy(&mut self, changes: &[Change]) -> Result<(), RunError> {
        let mut first = Ok(());
        let mut closed = BTreeSet::new();
        for change in changes {
            let endpoint = change.endpoint();
            let written = match change {
                Change::Set(..) if closed.contains(&endpoint) => {
                    self.policy.undo(change);
                    continue;
                }
                change => self.gates.write_policy(change),
            };
            if let Err(error) = written {
                self.policy.undo(change);
                self.unsettled.policy_map = true;
                first = first.and(Err(error));
                if change.narrows() {
                    closed.insert(endpoint);
                }
            }
        }
        for endpoint in closed {
            for removal in self.policy.close(endpoint) {
                if self.gates.write_policy(&removal).is_err() {
                    self.policy.undo(&removal);
                }
            }
        }
        for text in self.policy.newly_overfull() {
            self.alarm(text);
        }
        first
    }

    /// Another try at what the kernel refused.
    pub(super) fn settle_policy_map(&mut self) -> Result<(), RunError> {
        if !std::mem::take(&mut self.unsettled.policy_map) {
            return Ok(());
        }
        let changes = self.policy.refresh();
        self.write_policy_anew(&changes)
    }
}

fn read(
    in_force: &PolicySet,
    central: &[KnownPolicy],
    local: &[KnownPolicy],
) -> Result<PolicySet, String> {
    let source = |policy: &KnownPolicy| Source {
        name: policy.name.clone(),
        text: policy.text.clone(),
    };
    let sources = central.iter().chain(local).map(source).collect();
    let set = in_force.updated(sources).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        lines.join("; ")
    })?;
    let prefixes = set.cidrs().len();
    if prefixes > MAX_PREFIXES {
        return Err(format!(
            "rules name {prefixes} different prefixes, a node knows {MAX_PREFIXES}: merge some"
        ));
    }
    Ok(set)
}

/// Refuses files and folders of policies that cannot be read; and documents that are wrong, where nothing is `known`
/// that was good before. For the start: later the last good ones stay in force.
pub(super) fn refuse_unreadable(config: &AgentConfig, known: bool) -> Result<(), RunError> {
    let checked = local_documents(&config.policy_paths).and_then(|local| match known {
        true => Ok(()),
        false => read(&PolicySet::default(), &[], &local).map(drop),
    });
    checked.map_err(|error| {
        RunError::Policy(format!(
            "--policy: {error}; nothing was changed in the kernel"
        ))
    })
}

/// The documents of files and folders (`*.yaml`, `*.yml`, `*.json`), by name.
fn local_documents(paths: &[std::path::PathBuf]) -> Result<Vec<KnownPolicy>, String> {
    let said = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| format!("{path} cannot be read: {error}")
    };
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let mut inside: Vec<_> = std::fs::read_dir(path)
                .map_err(said(path))?
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<_, _>>()
                .map_err(said(path))?;
            inside.retain(|path| is_policy(path));
            inside.sort();
            files.extend(inside);
        } else {
            files.push(path.clone());
        }
    }
    files
        .into_iter()
        .map(|path| {
            Ok(KnownPolicy {
                text: std::fs::read_to_string(&path).map_err(said(&path))?,
                name: path.display().to_string(),
                version: 0,
            })
        })
        .collect()
}

fn is_policy(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| matches!(extension, "yaml" | "yml" | "json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.yaml");
        let said = local_documents(std::slice::from_ref(&missing)).unwrap_err();
        assert!(said.contains("missing.yaml cannot be read"), "{said}");
        // In a folder too.
        std::os::unix::fs::symlink(&missing, folder.path().join("link.yaml")).unwrap();
        let said = local_documents(&[folder.path().to_owned()]).unwrap_err();
        assert!(said.contains("link.yaml cannot be read"), "{said}");
    }
}
