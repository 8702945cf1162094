//! What is deployed with: the chart, the plain manifests made from it, units of systemd. Read by the tools that their
//! users have; skipped, with the reason, where one is missing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const LEAST: [&str; 3] = [
    "trustDomain=example.org",
    "prefixRanges={10.244.0.0/16}",
    "image.repository=handfast",
];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Tools that setup puts aside.
fn cache() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    cache.unwrap_or_else(home).join("handfast")
}

/// A tool, or none with the reason on standard error.
fn tool(test: &str, name: &str, place: &str) -> Option<Command> {
    let path = cache().join(place).join(name);
    if path.exists() {
        return Some(Command::new(path));
    }
    let found = Command::new(name).arg("--help").output().is_ok();
    if !found {
        eprintln!(
            "skipped: {test}: {name} is missing (scripts/setup.sh test brings it where its registry is in reach)"
        );
    }
    found.then(|| Command::new(name))
}

fn helm(test: &str, words: &[&str], values: &[&str]) -> Option<Output> {
    let mut helm = tool(test, "helm", "tools/bin")?;
    helm.args(words).arg(repository("deploy/helm/handfast"));
    for value in values {
        helm.args(["--set", value]);
    }
    Some(helm.output().unwrap())
}

fn rendered(test: &str, more: &[&str]) -> Option<String> {
    let values = [LEAST.as_slice(), more].concat();
    let words = ["template", "handfast", "--namespace", "handfast-system"];
    let output = helm(test, &words, &values)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Choices that an operator makes.
const CHOICES: [&[&str]; 3] = [
    &[],
    &[
        "ca.store.kind=postgres",
        "ca.store.url=postgres://handfast@db.example/handfast",
        "ca.store.passwordSecret=store",
        "ca.replicas=3",
        "ca.passphraseSecret=seal",
    ],
    &[
        "metrics.expose=true",
        "metrics.serviceMonitor.enabled=true",
        "metrics.dashboard.enabled=true",
        "nodes.prefixes.source=file",
        "nodes.prefixes.static.node-1={10.244.1.0/24}",
        "agent.joining=false",
        "detach.enabled=false",
    ],
];

#[test]
fn the_chart_passes_helms_own_lint_in_every_choice() {
    for choice in CHOICES {
        let values = [LEAST.as_slice(), choice].concat();
        let Some(output) = helm("helm lint", &["lint", "--strict"], &values) else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{choice:?}: {said}");
    }
}

#[test]
fn what_would_not_work_is_refused_by_its_name() {
    for (choice, named) in [
        (vec!["ca.replicas=2"], "ca.replicas"),
        (vec!["ca.store.kind=postgres"], "ca.store.url"),
        (
            vec!["metrics.serviceMonitor.enabled=true"],
            "metrics.expose",
        ),
        (vec!["trustDomain="], "trustDomain"),
        (vec!["prefixRanges=null"], "prefixRanges"),
        (vec!["policies.kinds={CiliumPolicy}"], "kinds"),
        (vec!["policies.kinds={NetworkPolicy}"], "policies.enforcer"),
    ] {
        let values = [LEAST.as_slice(), &choice].concat();
        let Some(output) = helm("values", &["template", "handfast"], &values) else {
            return;
        };
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && complaint.contains(named),
            "{choice:?}: {complaint}"
        );
    }
}

#[test]
fn every_manifest_fits_the_schemas_of_kubernetes() {
    for choice in CHOICES {
        let Some(text) = rendered("kubernetes-validate", choice) else {
            return;
        };
        let Some(mut validate) = tool(
            "kubernetes-validate",
            "kubernetes-validate",
            "python/venv/bin",
        ) else {
            return;
        };
        // The operator of Prometheus has schemas of its own.
        let known: Vec<&str> = text
            .split("\n---\n")
            .filter(|document| document.contains("\nkind: ") || document.starts_with("kind: "))
            .filter(|document| !document.contains("monitoring.coreos.com"))
            .collect();
        let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
        std::fs::write(file.path(), known.join("\n---\n")).unwrap();
        let output = validate.arg("--strict").arg(file.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{choice:?}: {said}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn the_plain_manifests_are_what_the_chart_says() {
    if tool("deploy/render.sh", "helm", "tools/bin").is_none() {
        return;
    }
    let output = Command::new(repository("deploy/render.sh"))
        .arg("--check")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn every_flag_that_a_manifest_or_unit_passes_is_one_of_ours() {
    let text = |path: &str| std::fs::read_to_string(repository(path)).unwrap();
    let manifests = text("deploy/kubernetes/handfast.yaml");
    let mut calls: Vec<Vec<String>> = Vec::new();
    let mut lines = manifests.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        if line == "args:" {
            let mut words = Vec::new();
            while let Some(word) = lines.next_if(|line| line.starts_with("- ")) {
                words.push(word.trim_start_matches("- ").to_owned());
            }
            calls.push(words);
        }
    }
    assert_eq!(calls.len(), 4, "init and serve, join and run");
    for unit in [
        "deploy/systemd/handfast-agent.service",
        "deploy/systemd/handfast-ca.service",
    ] {
        let unit = text(unit);
        let start = unit
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="));
        calls.push(
            start
                .unwrap()
                .split(' ')
                .skip(1)
                .map(str::to_owned)
                .collect(),
        );
    }
    for call in calls {
        let (flags, command): (Vec<_>, Vec<_>) =
            call.into_iter().partition(|word| word.starts_with("--"));
        let nouns = command.iter().take_while(|word| !word.starts_with('/'));
        let mut help = Command::new(env!("CARGO_BIN_EXE_handfast"));
        let output = help.args(nouns).arg("--help").output().unwrap();
        let known = String::from_utf8(output.stdout).unwrap();
        for flag in flags {
            let name = flag.split('=').next().unwrap();
            assert!(known.contains(name), "{command:?} knows no {name}");
        }
    }
}

#[test]
fn systemd_reads_the_units() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        eprintln!("skipped: systemd units: systemd-analyze is missing");
        return;
    };
    assert!(version.status.success());
    let folder = tempfile::tempdir().unwrap();
    for unit in ["handfast-agent.service", "handfast-ca.service"] {
        // It looks whether the program is there.
        let text = std::fs::read_to_string(repository("deploy/systemd").join(unit)).unwrap();
        let text = text.replace("/usr/local/bin/handfast", env!("CARGO_BIN_EXE_handfast"));
        let path = folder.path().join(unit);
        std::fs::write(&path, text).unwrap();
        let output = Command::new("systemd-analyze")
            .arg("verify")
            .arg(&path)
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && !complaint.contains(unit),
            "{complaint}"
        );
    }
}

#[test]
fn the_dashboard_asks_only_for_metrics_that_there_are() {
    let dashboard: serde_json::Value = serde_json::from_str(
        &std::fs::read_to_string(repository("deploy/helm/handfast/files/dashboard.json")).unwrap(),
    )
    .unwrap();
    let sources: String = ["identity-ca/src/metrics.rs", "auth-agent/src/metrics.rs"]
        .iter()
        .map(|path| std::fs::read_to_string(repository(path)).unwrap())
        .collect();
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            for word in query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
                if word.starts_with("handfast_") {
                    let name = word.trim_end_matches("_bucket");
                    assert!(
                        sources.contains(&format!("\"{name}\"")),
                        "{name} in {query}"
                    );
                    asked += 1;
                }
            }
        }
    }
    assert!(asked > 10);
}
