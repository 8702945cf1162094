//! The published schemas: up to date, and at one with the reader.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use handfast_policies::{Kind, PolicySet, Source, custom_resource_definition, json_schema};
use proptest::prelude::*;
use serde_json::Value;

use support::model::Document;
use support::random::document;
use support::text;

const KINDS: [(Kind, &str, &str); 4] = [
    (
        Kind::HandfastPolicy,
        "HandfastPolicy",
        include_str!("../schema/HandfastPolicy.json"),
    ),
    (
        Kind::CiliumNetworkPolicy,
        "CiliumNetworkPolicy",
        include_str!("../schema/CiliumNetworkPolicy.json"),
    ),
    (
        Kind::CiliumClusterwideNetworkPolicy,
        "CiliumClusterwideNetworkPolicy",
        include_str!("../schema/CiliumClusterwideNetworkPolicy.json"),
    ),
    (
        Kind::NetworkPolicy,
        "NetworkPolicy",
        include_str!("../schema/NetworkPolicy.json"),
    ),
];

#[test]
fn the_committed_schemas_are_those_that_the_reader_has() {
    for (kind, name, committed) in KINDS {
        let committed: Value = serde_json::from_str(committed).unwrap();
        assert!(
            committed == json_schema(kind),
            "policies/schema/{name}.json: write it anew with `handfast policy schema --kind {name}`"
        );
    }
    let crd: Value =
        serde_norway::from_str(include_str!("../schema/handfastpolicies.handfast.io.yaml"))
            .unwrap();
    assert!(
        crd == custom_resource_definition(),
        "policies/schema/handfastpolicies.handfast.io.yaml: write it anew with `handfast policy schema --crd`"
    );
}

/// The part of JSON Schema that ours use.
fn valid(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let fail = |what: &str| Err(format!("{at}: {what}"));
    if let Some(wanted) = schema.get("const")
        && wanted != value
    {
        return fail("another constant");
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array)
        && !words.contains(value)
    {
        return fail(&format!("{value} is none of the words"));
    }
    let is = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        other => panic!("{other}"),
    };
    match schema.get("type") {
        Some(Value::String(name)) if !is(name) => return fail(&format!("{value} is no {name}")),
        Some(Value::Array(names)) if !names.iter().any(|name| is(name.as_str().unwrap())) => {
            return fail("of none of the types");
        }
        _ => {}
    }
    if let Some(number) = value.as_i64() {
        let bound = |name: &str| schema.get(name).and_then(Value::as_i64);
        if bound("minimum").is_some_and(|least| number < least)
            || bound("maximum").is_some_and(|most| number > most)
        {
            return fail("out of bounds");
        }
    }
    if let Some(items) = value.as_array() {
        let bound = |name: &str| schema.get(name).and_then(Value::as_u64);
        let count = items.len() as u64;
        if bound("minItems").is_some_and(|least| count < least)
            || bound("maxItems").is_some_and(|most| count > most)
        {
            return fail("too few or too many items");
        }
        for (number, item) in items.iter().enumerate() {
            valid(&schema["items"], item, &format!("{at}[{number}]"))?;
        }
    }
    if let Some(fields) = value.as_object() {
        for name in schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            if !fields.contains_key(name.as_str().unwrap()) {
                return fail(&format!("{name} is missing"));
            }
        }
        for (name, value) in fields {
            let known = schema.get("properties").and_then(|known| known.get(name));
            match (known, schema.get("additionalProperties")) {
                (Some(known), _) => valid(known, value, &format!("{at}.{name}"))?,
                (None, Some(Value::Bool(false))) => return fail(&format!("{name} is unknown")),
                (None, Some(other)) => valid(other, value, &format!("{at}.{name}"))?,
                (None, None) => {}
            }
        }
    }
    Ok(())
}

fn schema_of(document: &Value) -> Value {
    let name = document["kind"].as_str().unwrap();
    let (kind, ..) = KINDS.iter().find(|(_, known, _)| *known == name).unwrap();
    json_schema(*kind)
}

#[test]
fn the_examples_are_valid() {
    for text in [
        include_str!("../../examples/nginx.yaml"),
        include_str!("../../examples/database.yaml"),
        include_str!("../../examples/shop/policies.yaml"),
    ] {
        for piece in handfast_policies::split(text) {
            let value: Value = serde_norway::from_str(piece.trim_start_matches("---")).unwrap();
            valid(&schema_of(&value), &value, "").unwrap_or_else(|why| panic!("{why}\n{piece}"));
        }
    }
}

#[test]
fn a_field_that_is_refused_is_not_in_the_schema() {
    let text = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a}\nspec: {endpointSelector: \
                {}, egress: [{toFQDNs: [{matchName: example.org}]}]}";
    let value: Value = serde_norway::from_str(text).unwrap();
    assert_eq!(
        valid(&schema_of(&value), &value, ""),
        Err(".spec.egress[0]: toFQDNs is unknown".to_owned())
    );
}

/// Every object of the CRD is structural: what it may hold is said, and nothing twice.
#[test]
fn the_definition_is_structural() {
    fn walk(schema: &Value, at: &str) {
        let open = schema.get("x-kubernetes-int-or-string").is_some()
            || schema.get("x-kubernetes-preserve-unknown-fields").is_some();
        assert!(open || schema["type"].is_string(), "{at} has no type");
        assert!(
            schema.get("const").is_none() && schema.get("$ref").is_none(),
            "{at}"
        );
        let both =
            schema.get("properties").is_some() && schema.get("additionalProperties").is_some();
        assert!(!both, "{at} has properties and additionalProperties");
        for (name, field) in schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            walk(field, &format!("{at}.{name}"));
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(key).filter(|inner| inner.is_object()) {
                walk(inner, &format!("{at}[]"));
            }
        }
    }
    let crd = custom_resource_definition();
    walk(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_read_is_valid(document in document()) {
        let text = text::document(0, &document);
        PolicySet::read(vec![Source { name: "p".to_owned(), text: text.clone() }]).unwrap();
        let value: Value = serde_norway::from_str(text.trim_start_matches("---")).unwrap();
        let checked = valid(&schema_of(&value), &value, "");
        prop_assert!(checked.is_ok(), "{:?}\n{}", checked, text);
        // And the schema of another kind is not met by accident.
        let other = match document {
            Document::Policy(_) => Kind::NetworkPolicy,
            Document::NetworkPolicy(_) => Kind::HandfastPolicy,
        };
        prop_assert!(valid(&json_schema(other), &value, "").is_err());
    }
}
