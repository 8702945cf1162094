//! Which objects of a cluster can be policies: the CA does not read them itself.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use handfast_ca::kubernetes::CheckPolicies;
use handfast_policies::{PolicySet, Source};

/// Remembers the last good set, so that what stays the same is not read again.
#[derive(Debug, Default)]
pub struct Checker(Mutex<PolicySet>);

impl CheckPolicies for Checker {
    fn check(&self, documents: &[(String, String)]) -> Vec<(String, String)> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut refused: BTreeMap<String, String> = BTreeMap::new();
        loop {
            let fine = documents
                .iter()
                .filter(|(name, _)| !refused.contains_key(name));
            let sources = fine.map(|(name, text)| Source {
                name: name.clone(),
                text: text.clone(),
            });
            let errors = match last.updated(sources.collect()) {
                Ok(set) => {
                    *last = set;
                    break;
                }
                Err(errors) => errors,
            };
            let before = refused.len();
            for error in errors {
                let why = match error.field.as_str() {
                    "" => error.message,
                    field => format!("{field}: {}", error.message),
                };
                let known = refused.entry(error.file).or_default();
                if !known.is_empty() {
                    known.push_str("; ");
                }
                known.push_str(&why);
            }
            // An error that is nobody's would be found for ever.
            if refused.len() == before {
                break;
            }
        }
        refused.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, more: &str) -> (String, String) {
        let text = format!(
            r#"{{"apiVersion":"handfast.io/v1alpha1","kind":"HandfastPolicy",
                "metadata":{{"name":"{name}","namespace":"shop"}},
                "spec":{{"endpointSelector":{{}},"ingress":[{{{more}}}]}}}}"#
        );
        (format!("kubernetes/HandfastPolicy/shop/{name}"), text)
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_field_and_does_not_keep_others_back() {
        let checker = Checker::default();
        let good = policy("good", r#""fromEndpoints":[{}]"#);
        let bad = policy("bad", r#""fromEndpoint":[{}]"#);
        let refused = checker.check(&[good.clone(), bad.clone()]);
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(refused[0].0, bad.0);
        assert!(refused[0].1.contains("fromEndpoint"), "{refused:?}");
        assert!(checker.check(&[good]).is_empty());
    }

    #[test]
    fn an_object_that_says_what_an_operator_has_said_already_is_refused() {
        let checker = Checker::default();
        let (name, text) = policy("one", r#""fromEndpoints":[{}]"#);
        let operators = ("HandfastPolicy/shop/one".to_owned(), text.clone());
        let refused = checker.check(&[operators, (name.clone(), text)]);
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(refused[0].0, name);
    }
}
