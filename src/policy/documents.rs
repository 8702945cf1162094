//! Policies as the CA keeps them: one document each, under kind, namespace and name.

use anyhow::{Context, anyhow, bail, ensure};
use handfast_policies::{PolicyInfo, PolicySet, Source, split};

/// A document with the name that it is stored under.
pub(super) struct Document {
    /// `KIND/NAME` or `KIND/NAMESPACE/NAME`.
    pub(super) key: String,
    pub(super) text: String,
}

/// Every document of sources that were read without an error.
pub(super) fn of(sources: &[Source]) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for source in sources {
        let unclear = || {
            format!(
                "{}: write one file for each document; nothing was changed",
                source.name
            )
        };
        let whole = read(source.clone()).with_context(unclear)?.len();
        let before = documents.len();
        for text in split(&source.text) {
            let piece = Source {
                name: source.name.clone(),
                text: text.clone().into_owned(),
            };
            for policy in read(piece).with_context(unclear)? {
                documents.push(Document {
                    key: key(&policy),
                    text: text.clone().into_owned(),
                });
            }
        }
        // Each piece must say by itself what it says in the file, and no more.
        ensure!(documents.len() - before == whole, unclear());
    }
    Ok(documents)
}

fn read(source: Source) -> anyhow::Result<Vec<PolicyInfo>> {
    let set = PolicySet::read(vec![source])
        .map_err(|errors| anyhow!(errors.first().map(ToString::to_string).unwrap_or_default()))?;
    Ok(set.policies().to_vec())
}

fn key(policy: &PolicyInfo) -> String {
    match &policy.namespace {
        Some(namespace) => format!("{}/{namespace}/{}", policy.kind, policy.name),
        None => format!("{}/{}", policy.kind, policy.name),
    }
}

/// How an object of a cluster is changed whose document this is; none for an operator's own document.
pub(super) fn in_cluster(key: &str) -> Option<String> {
    let parts: Vec<&str> = key.strip_prefix("kubernetes/")?.split('/').collect();
    match parts.as_slice() {
        [kind, namespace, name] => Some(format!(
            "kubectl edit {kind} {name} --namespace {namespace}"
        )),
        [kind, name] => Some(format!("kubectl edit {kind} {name}")),
        _ => None,
    }
}

/// The one stored policy that a name means, whole or by its end.
pub(super) fn find<'a>(keys: &[&'a str], name: &str) -> anyhow::Result<&'a str> {
    let means = |key: &&&str| {
        **key == name
            || key
                .strip_suffix(name)
                .is_some_and(|rest| rest.ends_with('/'))
    };
    let found: Vec<_> = keys.iter().filter(means).copied().collect();
    match found.as_slice() {
        [only] => Ok(only),
        [] => bail!(
            "there is no policy {name}; `handfast policy list` shows all; nothing was changed"
        ),
        several => bail!(
            "{name} may mean {}: write one of these; nothing was changed",
            several.join(" or ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str) -> String {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}}}\nspec: \
             {{endpointSelector: {{}}, ingress: [{{}}]}}\n"
        )
    }

    #[test]
    fn each_document_of_a_file_is_stored_for_itself() {
        let text = format!("# first\n{}---\n# second\n{}", policy("a"), policy("b"));
        let documents = of(&[Source {
            name: "p.yaml".to_owned(),
            text,
        }])
        .unwrap();
        let keys: Vec<_> = documents
            .iter()
            .map(|document| document.key.as_str())
            .collect();
        assert_eq!(keys, ["CiliumNetworkPolicy/a", "CiliumNetworkPolicy/b"]);
        assert!(documents[0].text.starts_with("# first\n"));
        assert!(documents[1].text.contains("# second\n"));
    }

    #[test]
    fn a_name_is_found_by_its_end_and_never_by_half() {
        let keys = [
            "HandfastPolicy/shop/web",
            "CiliumNetworkPolicy/web",
            "CiliumNetworkPolicy/db",
        ];
        assert_eq!(find(&keys, "db").unwrap(), "CiliumNetworkPolicy/db");
        assert_eq!(find(&keys, "shop/web").unwrap(), "HandfastPolicy/shop/web");
        assert_eq!(
            find(&keys, "CiliumNetworkPolicy/web").unwrap(),
            "CiliumNetworkPolicy/web"
        );
        assert!(find(&keys, "web").unwrap_err().to_string().contains(" or "));
        assert!(find(&keys, "eb").is_err());
        assert!(find(&keys, "").is_err());
    }
}
