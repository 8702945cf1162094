//! A set of policies that was read whole, and what it answers.

use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;

use crate::changed::Changed;
use crate::document::{Document, Spec};
use crate::entry::{Entry, Pairing, Remote, Workload};
use crate::file::{File, Numbers};
use crate::local::LocalPolicy;
use crate::model::{Authentication, Direction, PolicyInfo, RuleInfo, RuleRef};
use crate::pairing;
use crate::selected::Selected;

/// A text with the name that errors call it by: a path, or `policy/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// Where it is from.
    pub name: String,
    /// YAML or JSON; several documents are allowed.
    pub text: String,
}

/// One thing wrong with one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct ReadError {
    /// The source's name.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// The field path, such as `spec.ingress[0].toPorts`; empty when the text is no YAML.
    pub field: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// Something that is read as it stands and may yet surprise whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// The source's name.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// The field path, such as `spec.ingress[0].fromEntities[0]`.
    pub field: String,
    /// What it does or does not do.
    pub message: String,
}

/// All policies that are in force, read together.
///
/// Rules have numbers that stay theirs from one version of a set to the next ([`PolicySet::updated`]), so that what
/// remembers a rule by its number (a connection, a map) need not be written anew because another policy changed.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    files: Vec<Arc<File>>,
    policies: Vec<PolicyInfo>,
    /// Where each rule's description is: file, and place in it.
    rules: HashMap<RuleRef, (usize, usize)>,
    last_number: u32,
    cidrs: BTreeSet<IpNet>,
}

impl PolicySet {
    /// Reads all documents of all sources, or none of them.
    ///
    /// # Errors
    /// Everything that is wrong in any of them, in the order of sources, lines and columns.
    pub fn read(sources: Vec<Source>) -> Result<Self, Vec<ReadError>> {
        Self::default().updated(sources)
    }

    /// The next version of this set: only sources that are not in it already are read, and rules that stay in their
    /// place keep their numbers.
    ///
    /// # Errors
    /// As [`PolicySet::read`].
    pub fn updated(&self, sources: Vec<Source>) -> Result<Self, Vec<ReadError>> {
        let mut known: HashMap<&Source, &Arc<File>> =
            self.files.iter().map(|file| (&file.source, file)).collect();
        let kept: Vec<Option<&Arc<File>>> = sources.iter().map(|s| known.remove(s)).collect();
        let mut numbers = Numbers {
            free: known
                .into_values()
                .flat_map(|file| &file.rules)
                .map(|(number, rule)| (rule.place(), *number))
                .collect(),
            last: self.last_number,
        };
        let mut files = Vec::new();
        let mut errors = Vec::new();
        for (source, kept) in sources.into_iter().zip(kept) {
            match kept {
                Some(file) => files.push(Arc::clone(file)),
                None => match File::read(source, &mut numbers) {
                    Ok(file) => files.push(Arc::new(file)),
                    Err(mut found) => errors.append(&mut found),
                },
            }
        }
        errors.extend(repeated(&files));
        if errors.is_empty() {
            Ok(Self::of(files, numbers.last))
        } else {
            errors.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
            Err(errors)
        }
    }

    fn of(files: Vec<Arc<File>>, last_number: u32) -> Self {
        let mut set = Self {
            last_number,
            ..Self::default()
        };
        for (at, file) in files.iter().enumerate() {
            let rules = file.rules.iter().enumerate();
            set.rules
                .extend(rules.map(|(place, (number, _))| (*number, (at, place))));
            for document in &file.documents {
                set.policies.push(document.info(&file.source.name));
                for rule in document.specs.iter().flat_map(|spec| &spec.rules) {
                    set.cidrs.extend(rule.peers.cidrs());
                }
            }
        }
        set.files = files;
        set
    }

    /// The same without one rule; whatever it closes stays closed.
    pub(crate) fn without(&self, rule: RuleRef) -> Self {
        let Some((place, _)) = self.rules.get(&rule) else {
            return self.clone();
        };
        let mut files = self.files.clone();
        if let Some(file) = files.get_mut(*place) {
            let mut documents = file.documents.clone();
            for spec in documents
                .iter_mut()
                .flat_map(|document| &mut document.specs)
            {
                spec.rules.retain(|other| other.number != rule);
            }
            *file = Arc::new(File {
                source: file.source.clone(),
                documents,
                rules: file.rules.clone(),
                notes: file.notes.clone(),
            });
        }
        Self::of(files, self.last_number)
    }

    /// Every document with the name of its source.
    pub(crate) fn documents(&self) -> impl Iterator<Item = (&str, &Document)> {
        self.files.iter().flat_map(|file| {
            let name = file.source.name.as_str();
            file.documents.iter().map(move |document| (name, document))
        })
    }

    fn specs(&self) -> impl Iterator<Item = &Spec> {
        self.documents().flat_map(|(_, document)| &document.specs)
    }

    /// What the policies say of one workload, to be asked about many remotes.
    #[must_use]
    pub fn of_workload<'a>(&'a self, local: &'a Workload) -> LocalPolicy<'a> {
        let specs = self.specs().filter(|spec| spec.subject.matches(local));
        LocalPolicy::new(local, specs)
    }

    /// Whether some policy puts this workload under default deny in this direction.
    #[must_use]
    pub fn selected(&self, local: &Workload, direction: Direction) -> bool {
        self.specs()
            .any(|spec| spec.denies.by_default(direction) && spec.subject.matches(local))
    }

    /// What the gates of `local` enforce toward and from `remote`.
    ///
    /// [`lookup`](crate::lookup) says which entry decides. Where none does, the flow is denied if `local` is
    /// [selected](Self::selected) in that direction, and allowed if it is not.
    #[must_use]
    pub fn entries(&self, local: &Workload, remote: &Remote) -> Vec<Entry> {
        self.of_workload(local).entries(remote)
    }

    /// A workload with the policies that select it, to be asked again and again.
    #[must_use]
    pub fn select(&self, workload: Workload) -> Selected {
        Selected::new(workload, &self.files)
    }

    /// Whether some flow between the two is allowed on both ends, so that proving them ahead pays.
    #[must_use]
    pub fn pairing(&self, local: &Workload, remote: &Workload) -> Pairing {
        pairing::between(&self.of_workload(local), &self.of_workload(remote))
    }

    /// What is different from an earlier version of this set.
    #[must_use]
    pub fn changed_since<'a>(&'a self, before: &'a Self) -> Changed<'a> {
        let of =
            |set: &Self| -> HashSet<*const File> { set.files.iter().map(Arc::as_ptr).collect() };
        let (old, new) = (of(before), of(self));
        let only = |set: &'a Self, other: HashSet<*const File>| {
            let files = set.files.iter();
            let files = files.filter(move |file| !other.contains(&Arc::as_ptr(file)));
            files.flat_map(|file| file.documents.iter().flat_map(|document| &document.specs))
        };
        Changed {
            specs: only(self, old).chain(only(before, new)).collect(),
        }
    }

    /// Every prefix that tells unmanaged addresses apart, without repeats.
    ///
    /// These are all that rules name, exceptions included: an address's longest
    /// match among them decides what its rules are. If one of IPv6 would swallow
    /// IPv4 addresses in their mapped form, `0.0.0.0/0` is among them to keep
    /// these out.
    #[must_use]
    pub fn cidrs(&self) -> Vec<IpNet> {
        let mut cidrs = self.cidrs.clone();
        let mapped = IpNet::V6(Ipv6Net::new_assert(
            Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
            96,
        ));
        if cidrs.iter().any(|net| net.contains(&mapped)) {
            cidrs.insert(IpNet::V4(Ipv4Net::default()));
        }
        cidrs.into_iter().collect()
    }

    /// What an address outside the mesh is to the rules: its longest match among [`PolicySet::cidrs`].
    #[must_use]
    pub fn outside(&self, address: IpAddr) -> Remote {
        let address = IpNet::from(address);
        let containing = self
            .cidrs()
            .into_iter()
            .filter(|net| net.contains(&address));
        containing
            .max_by_key(IpNet::prefix_len)
            .map_or(Remote::World, Remote::Cidr)
    }

    /// Where a rule stands; `None` for a number that is not of this set.
    #[must_use]
    pub fn rule(&self, rule: RuleRef) -> Option<&RuleInfo> {
        let (file, place) = self.rules.get(&rule)?;
        let (_, info) = self.files.get(*file)?.rules.get(*place)?;
        Some(info)
    }

    /// Every rule, in the order in which they were read.
    pub fn rules(&self) -> impl Iterator<Item = (RuleRef, &RuleInfo)> {
        let rules = self.files.iter().flat_map(|file| &file.rules);
        rules.map(|(number, info)| (*number, info))
    }

    /// Whether any rule counts what it would drop.
    #[must_use]
    pub fn audits(&self) -> bool {
        self.rules()
            .any(|(_, rule)| rule.authentication == Some(Authentication::Audit))
    }

    /// The documents, in the order in which they were read.
    #[must_use]
    pub fn policies(&self) -> &[PolicyInfo] {
        &self.policies
    }

    /// What is read as it stands and may yet surprise.
    pub fn notes(&self) -> impl Iterator<Item = &Note> {
        self.files.iter().flat_map(|file| &file.notes)
    }
}

/// Documents that have the kind, namespace and name of an earlier one.
fn repeated(files: &[Arc<File>]) -> Vec<ReadError> {
    let mut names = HashMap::new();
    let mut errors = Vec::new();
    for file in files {
        for document in &file.documents {
            let identity = (document.kind, &document.namespace, &document.name);
            match names.entry(identity) {
                Vacant(entry) => {
                    entry.insert((&file.source.name, document.line));
                }
                Occupied(entry) => {
                    let (file_before, line_before) = entry.get();
                    errors.push(ReadError {
                        file: file.source.name.clone(),
                        line: document.line,
                        column: document.column,
                        field: "metadata.name".to_owned(),
                        message: format!(
                            "there is a {} {} already, at {file_before}:{line_before}: rename one of them",
                            document.kind, document.name
                        ),
                    });
                }
            }
        }
    }
    errors
}
