//! A policy that is not understood wholly is not applied at all.

use crate::harness::lab::Lab;
use crate::harness::mesh::Authority;
use crate::support::{self, binary, fails};

const GOOD: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: one
spec:
  endpointSelector:
    matchLabels:
      run: nginx
  ingress:
    - fromEndpoints:
        - matchLabels:
            client: good
";

#[test]
fn a_policy_with_an_error_is_refused_whole_with_file_line_and_field() {
    let Some(_turn) = support::turn("policies") else {
        return;
    };
    let lab = Lab::create("hft").unwrap();
    let authority = Authority::start(&lab, binary()).unwrap();
    let list = || {
        let said = authority
            .cli(&["policy", "list", "--output", "json"])
            .unwrap();
        said.success("policy list").unwrap().stdout
    };
    let before = list();
    let second = GOOD.replace("name: one", "name: two");
    let cases = [
        (
            "typo",
            GOOD.replace("fromEndpoints", "fromEndpoint"),
            "bad.yaml:10",
            "fromEndpoint",
        ),
        (
            "selector",
            GOOD.replace("matchLabels:\n      run", "matchNames:\n      run"),
            "bad.yaml:7",
            "matchNames",
        ),
        (
            "not enforced",
            format!("{GOOD}      toFQDNs: []\n"),
            "bad.yaml:13",
            "toFQDNs",
        ),
        (
            "second of two",
            format!("{GOOD}---\n{}", second.replace("ingress", "ingres")),
            "bad.yaml:",
            "ingres",
        ),
        ("no YAML", "a: [".to_owned(), "bad.yaml:", ""),
    ];
    for (name, text, place, field) in cases {
        let path = lab.dir().join("bad.yaml");
        std::fs::write(&path, &text).unwrap();
        let path = path.display().to_string();
        for verb in ["check", "apply"] {
            let said = authority.cli(&["policy", verb, &path]).unwrap();
            assert_eq!(said.code(), 1, "{name}: {said:?}");
            assert!(said.stderr.contains(place), "{name}: {}", said.stderr);
            assert!(said.stderr.contains(field), "{name}: {}", said.stderr);
        }
        assert_eq!(list(), before, "{name}");
    }

    let folder = lab.dir().join("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("a.yaml"), GOOD).unwrap();
    std::fs::write(
        folder.join("b.yaml"),
        second.replace("metadata:", "metdata:"),
    )
    .unwrap();
    let said = authority
        .cli(&["policy", "apply", &folder.display().to_string()])
        .unwrap();
    fails(&said, &["b.yaml", "metdata"]);
    assert_eq!(list(), before);

    std::fs::write(folder.join("b.yaml"), second).unwrap();
    authority.apply(&folder).unwrap();
    let after = list();
    assert!(after.contains("one") && after.contains("two"), "{after}");
}
