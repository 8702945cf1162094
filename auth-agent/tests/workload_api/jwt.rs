//! The JWT profile.

use handfast_agent::workload_api::client::call;
use handfast_agent::workload_api::proto::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest,
};
use prost_types::value::Kind;
use serde_json::Value;
use tonic::Code;

use crate::support::{Ca, next, ready};

fn request(audience: &str, spiffe_id: &str) -> tonic::Request<JwtsvidRequest> {
    call(JwtsvidRequest {
        audience: vec![audience.to_owned()],
        spiffe_id: spiffe_id.to_owned(),
    })
}

#[tokio::test]
async fn w11_jwt_bundles_hold_jwt_keys_only_and_the_own_trust_domain_always() {
    let (ca, node, svids) = ready().await;
    let other = Ca::start("other.example").await;
    node.desk
        .give_with(svids, ca.bundle.clone(), [other.bundle.clone()], Vec::new());
    let stream = node
        .calls()
        .await
        .fetch_jwt_bundles(call(JwtBundlesRequest {}))
        .await;
    let bundles = next(&mut stream.unwrap().into_inner())
        .await
        .unwrap()
        .bundles;
    assert_eq!(bundles.len(), 2);
    for (name, bytes) in bundles {
        assert!(["spiffe://example.org", "spiffe://other.example"].contains(&name.as_str()));
        let set: Value = serde_json::from_slice(&bytes).unwrap();
        let keys = set["keys"].as_array().unwrap();
        assert!(!keys.is_empty());
        for key in keys {
            assert_eq!(key["use"], "jwt-svid");
            assert!(!key["kid"].as_str().unwrap().is_empty(), "J-4");
            assert!(key.get("x5c").is_none());
        }
    }
}

#[tokio::test]
async fn w12_an_audience_is_mandatory_and_each_identity_gives_a_token() {
    let (_ca, node, _) = ready().await;
    let mut calls = node.calls().await;
    let none = calls.fetch_jwtsvid(call(JwtsvidRequest::default())).await;
    assert_eq!(none.unwrap_err().code(), Code::InvalidArgument);
    let all = calls
        .fetch_jwtsvid(request("db", ""))
        .await
        .unwrap()
        .into_inner();
    let ids: Vec<_> = all
        .svids
        .iter()
        .map(|svid| svid.spiffe_id.as_str())
        .collect();
    assert_eq!(
        ids,
        ["spiffe://example.org/web", "spiffe://example.org/api"]
    );
    let one = calls
        .fetch_jwtsvid(request("db", "spiffe://example.org/api"))
        .await;
    assert_eq!(one.unwrap().into_inner().svids.len(), 1);
    let foreign = calls
        .fetch_jwtsvid(request("db", "spiffe://example.org/db"))
        .await;
    assert_eq!(foreign.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn w13_a_token_is_checked_against_its_own_trust_domain() {
    let (ca, node, svids) = ready().await;
    let (other, elsewhere, _) = {
        // Another trust domain with an endpoint of its own signs the token.
        let mut other = Ca::start("other.example").await;
        let entry = other.entry("spiffe://other.example/job").await;
        let token = other
            .agent
            .issue_jwt(&entry, &["db".to_owned()])
            .await
            .unwrap()
            .unwrap();
        (other, token, entry)
    };
    let mut calls = node.calls().await;
    let own = calls
        .fetch_jwtsvid(request("db", "spiffe://example.org/web"))
        .await
        .unwrap();
    let own = own.into_inner().svids.remove(0).svid;
    let validate = |token: &str, audience: &str| {
        call(ValidateJwtsvidRequest {
            audience: audience.to_owned(),
            svid: token.to_owned(),
        })
    };
    let valid = calls
        .validate_jwtsvid(validate(&own, "db"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(valid.spiffe_id, "spiffe://example.org/web");
    let claims = valid.claims.unwrap().fields;
    let text = |name: &str| claims[name].kind.clone();
    assert_eq!(
        text("sub"),
        Some(Kind::StringValue("spiffe://example.org/web".to_owned()))
    );
    assert!(matches!(
        text("aud"),
        Some(Kind::ListValue(_) | Kind::StringValue(_))
    ));
    assert!(matches!(text("exp"), Some(Kind::NumberValue(at)) if at > 1e9));

    let foreign = elsewhere.token.as_str();
    let unknown = calls.validate_jwtsvid(validate(foreign, "db")).await;
    assert_eq!(
        unknown.unwrap_err().code(),
        Code::InvalidArgument,
        "not federated"
    );
    node.desk
        .give_with(svids, ca.bundle.clone(), [other.bundle.clone()], Vec::new());
    let known = calls
        .validate_jwtsvid(validate(foreign, "db"))
        .await
        .unwrap();
    assert_eq!(known.into_inner().spiffe_id, "spiffe://other.example/job");
    let mut forged = own.clone();
    forged.replace_range(forged.len() - 6..forged.len() - 4, "AA");
    for (token, audience) in [
        (own.as_str(), "else"),
        (own.as_str(), ""),
        (&forged, "db"),
        ("", "db"),
        ("a.b.c", "db"),
    ] {
        let refused = calls.validate_jwtsvid(validate(token, audience)).await;
        assert_eq!(
            refused.unwrap_err().code(),
            Code::InvalidArgument,
            "{audience:?}"
        );
    }
}
