//! What a CA that works says in numbers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Ca, next};
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::admin::NewEntry;
use handfast_ca::client::{SvidKind, SvidRequest};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// The value of a series, once it is at least as large.
async fn at_least(handle: &PrometheusHandle, series: &str, least: f64) -> f64 {
    let since = Instant::now();
    loop {
        let text = handle.render();
        let mut values = text.lines().filter_map(|line| {
            let value = line.strip_prefix(series)?.strip_prefix(' ')?;
            value.parse::<f64>().ok()
        });
        match values.next() {
            Some(value) if value >= least => return value,
            _ if since.elapsed() > Duration::from_secs(30) => panic!("{series} in\n{text}"),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn issuance_refusals_latencies_ends_and_what_agents_have_confirmed_are_measured() {
    let handle = PrometheusBuilder::new().install_recorder().unwrap();
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let web = ca.entry("spiffe://example.org/web", None).await;
    let agent = ca.connect(&joined).await.unwrap();
    let request = |entry: &str| SvidRequest {
        kind: SvidKind::Workload {
            entry_id: entry.to_owned(),
        },
        csr: PrivateKey::generate().unwrap().csr().unwrap(),
    };
    let batch = vec![request(&web.id), request("nobody")];
    agent.issue(batch).await.unwrap();
    let audience = ["db".to_owned()];
    agent.issue_jwt(&web.id, &audience).await.unwrap().unwrap();
    let nonsense = NewEntry {
        spiffe_id: "nonsense".to_owned(),
        ..NewEntry::default()
    };
    ca.admin.create_entry(&nonsense).await.unwrap_err();
    let mut updates = agent.updates().await.unwrap();
    let sequence = next(&mut updates).await.sequence;
    agent.ack(sequence, None).await.unwrap();

    let series = [
        ("handfast_ca_svids_issued_total{kind=\"workload\"}", 1.0),
        (
            "handfast_ca_refusals_total{act=\"svid.issue\",reason=\"denied\"}",
            1.0,
        ),
        ("handfast_ca_svids_issued_total{kind=\"jwt\"}", 1.0),
        (
            "handfast_ca_refusals_total{act=\"entry.create\",reason=\"invalid\"}",
            1.0,
        ),
        ("handfast_ca_issue_seconds_count", 1.0),
        ("handfast_ca_store_change_seconds_count", 2.0),
        ("handfast_ca_audit_write_seconds_count", 3.0),
        ("handfast_ca_agents_connected", 1.0),
        ("handfast_ca_bundle_sequence", 1.0),
        ("handfast_ca_entries", 1.0),
        ("handfast_ca_nodes", 1.0),
    ];
    for (name, least) in series {
        at_least(&handle, name, least).await;
    }
    let confirmed = "handfast_ca_agent_acknowledged_sequence{node=\"web1\"}";
    let confirmed = at_least(&handle, confirmed, 1.0).await;
    assert!((confirmed - sequence as f64).abs() < 1.0, "{confirmed}");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    for kind in ["root", "issuing"] {
        let name = format!("handfast_ca_authority_expiry_timestamp_seconds{{kind=\"{kind}\"}}");
        at_least(&handle, &name, now).await;
    }
    ca.stop().await;
}
