//! From text to documents, with a place for every error.
//!
//! A field that is not enforced is an error and never skipped: somebody who
//! wrote it believes that it protects something.

mod authentication;
mod cursor;
mod dialect;
mod icmps;
mod kubernetes;
mod list;
mod peers;
mod ports;
mod publish;
mod rule;
mod selector;
mod shape;
mod typo;
pub(crate) mod value;
pub(crate) mod yaml;

pub(crate) use list::items;
pub(crate) use peers::ENTITIES;
pub use publish::{custom_resource_definition, json_schema};
pub(crate) use selector::{NAMESPACE, NAMESPACE_LABELS};
pub(crate) use typo::closest;

use std::borrow::Cow;

use crate::document::{Document, Spec};
use crate::model::Kind;
use crate::set::{Note, ReadError};
use cursor::{Cursor, Fields, Report};
use dialect::{DIALECTS, Dialect, OTHER_KINDS};
use selector::Scope;
use shape::{Schema, Shape, field};

static DOCUMENT: Schema = Schema {
    about: "A policy document.",
    known: &[
        field("apiVersion", Shape::Text, "The version of the kind.").required(),
        field("kind", Shape::Text, "The kind of document.").required(),
        field("metadata", Shape::Map(&METADATA), "What it is called.").required(),
        field("spec", Shape::Opaque, "What it says."),
        field("specs", Shape::Opaque, "The same, several times."),
        field("status", Shape::Opaque, "What the cluster says of it."),
    ],
    refused: &[],
};

/// What Kubernetes keeps in metadata; none of it but name and namespace has a meaning here.
static METADATA: Schema = Schema {
    about: "What the document is called.",
    known: &[
        field("name", Shape::Text, "Its name.").required(),
        field(
            "namespace",
            Shape::Text,
            "Where it selects; without one it speaks of every workload of the mesh.",
        ),
        field("labels", Shape::Opaque, ""),
        field("annotations", Shape::Opaque, ""),
        field("uid", Shape::Opaque, ""),
        field("resourceVersion", Shape::Opaque, ""),
        field("generation", Shape::Opaque, ""),
        field("creationTimestamp", Shape::Opaque, ""),
        field("deletionTimestamp", Shape::Opaque, ""),
        field("deletionGracePeriodSeconds", Shape::Opaque, ""),
        field("finalizers", Shape::Opaque, ""),
        field("managedFields", Shape::Opaque, ""),
        field("ownerReferences", Shape::Opaque, ""),
        field("selfLink", Shape::Opaque, ""),
    ],
    refused: &[("generateName", "write metadata.name")],
};

/// What people keep beside their policies, by a field of it.
const FILES_OF_TOOLS: [(&str, &str); 2] = [
    ("tests", "these are cases for `handfast policy test`"),
    ("workloads", "these are workloads for --workloads"),
];

/// The text of each document of a text by itself, so that each can be stored and replaced alone.
///
/// The items of a list become JSON. A text that is no YAML stays whole; reading it says what is wrong.
#[must_use]
pub fn split(text: &str) -> Vec<Cow<'_, str>> {
    let documents = yaml::split(text).into_iter();
    documents
        .flat_map(|document| match list::texts(document) {
            Some(items) => items.into_iter().map(Cow::Owned).collect(),
            None => vec![Cow::Borrowed(document)],
        })
        .collect()
}

/// Reads every document of a text.
pub(crate) fn documents(
    file: &str,
    text: &str,
) -> Result<(Vec<Document>, Vec<Note>), Vec<ReadError>> {
    let report = Report::new(file);
    let nodes = yaml::parse(text.strip_prefix('\u{feff}').unwrap_or(text));
    let nodes = nodes.unwrap_or_else(|malformed| {
        report.add(malformed.at, "", malformed.message);
        Vec::new()
    });
    let documents: Vec<_> = nodes
        .iter()
        .flat_map(items)
        .filter_map(|node| document(&Cursor::document(&report, node)))
        .collect();
    let (errors, notes) = report.into_parts();
    if errors.is_empty() {
        Ok((documents, notes))
    } else {
        Err(errors)
    }
}

fn document(cursor: &Cursor<'_>) -> Option<Document> {
    let fields = cursor.any_fields()?;
    for (field, what) in FILES_OF_TOOLS {
        if fields.get(field).is_some() && fields.get("kind").is_none() {
            cursor.error(format!(
                "{what}, and no policy: name the files of policies, or keep this one in another folder"
            ));
            return None;
        }
    }
    // Without a kind that we know, the other fields may mean anything.
    let dialect = dialect(&fields)?;
    let fields = cursor.fields(&DOCUMENT)?;
    let metadata = fields
        .need("metadata", "name the policy in metadata.name")
        .and_then(|metadata| identity(&metadata));
    let scope = Scope::new(
        metadata
            .as_ref()
            .and_then(|(namespace, _)| namespace.clone()),
    );
    let specs = specs(&fields, dialect, &scope);
    let (namespace, name) = metadata?;
    if namespace.is_some() && dialect.kind == Kind::CiliumClusterwideNetworkPolicy {
        cursor.error(
            "a CiliumClusterwideNetworkPolicy is in no namespace: remove metadata.namespace",
        );
    }
    let at = cursor.node.at;
    Some(Document {
        kind: dialect.kind,
        namespace,
        name,
        line: at.line,
        column: at.column,
        specs,
    })
}

fn dialect(fields: &Fields<'_>) -> Option<&'static Dialect> {
    let kind = fields.need(
        "kind",
        "write HandfastPolicy, CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy or NetworkPolicy",
    )?;
    let written = kind.string()?;
    if let Some((name, instead)) = OTHER_KINDS.iter().find(|(name, _)| *name == written) {
        kind.error(format!("handfast does not read the kind {name}: {instead}"));
        return None;
    }
    let kinds = DIALECTS.each_ref().map(|dialect| (dialect.name, dialect));
    let dialect = kind.choice("kind", &kinds)?;
    let hint = format!("write {}", dialect.api_version);
    let version = fields.need("apiVersion", &hint)?;
    let written = version.string()?;
    if written != dialect.api_version {
        let (kind, known) = (dialect.name, dialect.api_version);
        version.error(format!(
            "unknown version {written:?} of {kind}: write {known}"
        ));
        return None;
    }
    Some(dialect)
}

/// Namespace and name.
fn identity(metadata: &Cursor<'_>) -> Option<(Option<String>, String)> {
    let fields = metadata.fields(&METADATA)?;
    let name = fields
        .need("name", "policies are told apart by their names")
        .and_then(|name| object_name(&name, 253));
    let namespace = match fields.get("namespace") {
        Some(namespace) => Some(object_name(&namespace, 63)?),
        None => None,
    };
    Some((namespace, name?))
}

/// A name as Kubernetes wants it (RFC 1123 subdomain).
fn object_name(cursor: &Cursor<'_>, longest: usize) -> Option<String> {
    let name = cursor.string()?;
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = (1..=longest).contains(&name.len())
        && name.chars().all(inner)
        && name.starts_with(edge)
        && name.ends_with(edge);
    if !good {
        cursor.error(format!(
            "not a name: use at most {longest} of a-z, 0-9, - and ., a letter or digit first and last"
        ));
    }
    good.then(|| name.to_owned())
}

fn specs(fields: &Fields<'_>, dialect: &'static Dialect, scope: &Scope) -> Vec<Spec> {
    let several = fields.get("specs");
    let has_one = matches!(dialect.kind, Kind::HandfastPolicy | Kind::NetworkPolicy);
    if let (Some(specs), true) = (&several, has_one) {
        specs.error(format!(
            "a {} has one spec: write one document for each",
            dialect.name
        ));
        return Vec::new();
    }
    let single = fields.get("spec");
    if single.is_none() && several.is_none() {
        fields
            .cursor
            .error("spec is missing: it says whom the policy selects and what it allows");
    }
    let items = several.and_then(|specs| {
        let items = specs.items()?;
        if items.is_empty() && single.is_none() {
            specs.error("there is no spec in it, so the policy has no effect");
        }
        Some(items)
    });
    let cursors = single.into_iter().chain(items.into_iter().flatten());
    cursors
        .filter_map(|cursor| spec(&cursor, dialect, scope))
        .collect()
}

fn spec(cursor: &Cursor<'_>, dialect: &'static Dialect, scope: &Scope) -> Option<Spec> {
    let Some(rules) = &dialect.rules else {
        return kubernetes::spec(cursor, scope);
    };
    let fields = cursor.fields(dialect.spec)?;
    if let Some(description) = fields.get("description") {
        description.string();
    }
    let selector = fields.need("endpointSelector", "write {} to select every workload");
    let subject = selector
        .as_ref()
        .and_then(|selector| selector::subject(selector, scope));
    let rules = rule::all(&fields, rules, scope);
    let (selector, subject, (rules, denies)) = (selector?, subject?, rules?);
    Some(Spec {
        subject,
        rules,
        denies,
        field: selector.path.clone(),
        line: selector.node.at.line,
    })
}
