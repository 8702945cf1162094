//! The schemas of documents, made from the tables that the reader uses.

use serde_json::{Map, Value, json};

use crate::model::Kind;
use crate::read::dialect::{DIALECTS, Dialect};
use crate::read::shape::{Item, Schema, Shape};
use crate::read::{DOCUMENT, METADATA};

/// Which of the two dialects of JSON Schema.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// Editors and validators: draft 2020-12, unknown fields refused.
    Files,
    /// The API server of Kubernetes: a structural schema of OpenAPI v3, which leaves unknown fields to the reader.
    Cluster,
}

/// The JSON Schema (draft 2020-12) of one kind of document: the fields that are read, and no others.
///
/// What a schema cannot say (that a range is not turned round, that rules name something) only reading finds.
#[must_use]
pub fn json_schema(kind: Kind) -> Value {
    let dialect = dialect(kind);
    let mut schema = object(&DOCUMENT, For::Files);
    let metadata = object(&METADATA, For::Files);
    let spec = object(dialect.spec, For::Files);
    let has_several = !matches!(kind, Kind::HandfastPolicy | Kind::NetworkPolicy);
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("apiVersion".into(), json!({"const": dialect.api_version}));
        properties.insert("kind".into(), json!({"const": dialect.name}));
        properties.insert("metadata".into(), metadata);
        if has_several {
            let same = json!({"type": "array", "items": {"$ref": "#/properties/spec"}});
            properties.insert("specs".into(), same);
        } else {
            properties.remove("specs");
        }
        properties.insert("spec".into(), spec);
    }
    if let Some(schema) = schema.as_object_mut() {
        schema.insert(
            "$schema".into(),
            json!("https://json-schema.org/draft/2020-12/schema"),
        );
        schema.insert("title".into(), json!(dialect.name));
        schema.insert("description".into(), json!(dialect.about));
        if !has_several {
            let required = json!(["apiVersion", "kind", "metadata", "spec"]);
            schema.insert("required".into(), required);
        }
    }
    schema
}

/// The CustomResourceDefinition (apiextensions.k8s.io/v1) of [`Kind::HandfastPolicy`].
#[must_use]
pub fn custom_resource_definition() -> Value {
    let dialect = dialect(Kind::HandfastPolicy);
    let (group, version) = dialect
        .api_version
        .split_once('/')
        .unwrap_or((dialect.api_version, ""));
    let condition = json!({
        "type": "object",
        "required": ["type", "status"],
        "properties": {
            "type": {"type": "string", "description": "Accepted or Enforced."},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": {"type": "string"},
            "message": {"type": "string", "description": "What is wrong, with its place; or on how many nodes it is enforced."},
            "observedGeneration": {"type": "integer", "format": "int64"},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
        },
    });
    let status = json!({
        "type": "object",
        "description": "What the cluster says of it.",
        "properties": {
            "observedGeneration": {"type": "integer", "format": "int64"},
            "conditions": {
                "type": "array",
                "items": condition,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        },
    });
    let column = |name: &str, kind: &str| {
        let path = format!(".status.conditions[?(@.type==\"{kind}\")].status");
        json!({"name": name, "type": "string", "jsonPath": path})
    };
    let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("handfastpolicies.{group}")},
        "spec": {
            "group": group,
            "names": {
                "kind": dialect.name,
                "listKind": format!("{}List", dialect.name),
                "plural": "handfastpolicies",
                "singular": "handfastpolicy",
                "shortNames": ["hfp"],
                "categories": ["handfast"],
            },
            "scope": "Namespaced",
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [column("Accepted", "Accepted"), column("Enforced", "Enforced"), age],
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "description": dialect.about,
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": {"type": "string"},
                        "kind": {"type": "string"},
                        "metadata": {"type": "object"},
                        "spec": object(dialect.spec, For::Cluster),
                        "status": status,
                    },
                }},
            }],
        },
    })
}

fn dialect(kind: Kind) -> &'static Dialect {
    let [first, ..] = &DIALECTS;
    let found = DIALECTS.iter().find(|dialect| dialect.kind == kind);
    found.unwrap_or(first)
}

fn object(schema: &'static Schema, whom: For) -> Value {
    let properties: Map<_, _> = schema
        .known
        .iter()
        .map(|field| {
            let mut value = shape(field.shape, whom);
            if let (Some(value), false) = (value.as_object_mut(), field.about.is_empty()) {
                value.insert("description".into(), json!(field.about));
            }
            (field.name.to_owned(), value)
        })
        .collect();
    let required: Vec<_> = schema
        .known
        .iter()
        .filter(|field| field.required)
        .map(|field| field.name)
        .collect();
    let mut value = json!({
        "type": "object",
        "description": schema.about,
        "properties": properties,
    });
    if let Some(value) = value.as_object_mut() {
        if !required.is_empty() {
            value.insert("required".into(), json!(required));
        }
        match whom {
            For::Files => value.insert("additionalProperties".into(), json!(false)),
            // Kept, not pruned: only so is a field that is misspelt found, and said in the status.
            For::Cluster => {
                value.insert("x-kubernetes-preserve-unknown-fields".into(), json!(true))
            }
        };
    }
    value
}

fn shape(shape: Shape, whom: For) -> Value {
    match shape {
        Shape::Text => json!({"type": "string"}),
        Shape::Form(pattern) => json!({"type": "string", "pattern": pattern}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Choice(words) => json!({"type": "string", "enum": words}),
        Shape::Number(least, most) => {
            json!({"type": "integer", "minimum": least, "maximum": most})
        }
        Shape::NumberOrWord => match whom {
            For::Files => json!({"type": ["integer", "string"]}),
            For::Cluster => json!({"x-kubernetes-int-or-string": true}),
        },
        Shape::Labels => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        Shape::List(of, least, most) => {
            let mut list = json!({"type": "array", "items": item(of, whom)});
            if let Some(list) = list.as_object_mut() {
                if least > 0 {
                    list.insert("minItems".into(), json!(least));
                }
                if most < usize::MAX {
                    list.insert("maxItems".into(), json!(most));
                }
            }
            list
        }
        Shape::Map(schema) => object(schema, whom),
        Shape::Opaque => match whom {
            For::Files => json!({}),
            For::Cluster => json!({"x-kubernetes-preserve-unknown-fields": true}),
        },
    }
}

fn item(of: Item, whom: For) -> Value {
    shape(
        match of {
            Item::Text => Shape::Text,
            Item::Form(pattern) => Shape::Form(pattern),
            Item::Choice(words) => Shape::Choice(words),
            Item::Map(schema) => Shape::Map(schema),
        },
        whom,
    )
}
