//! Cases that people write down.

use super::*;

const TESTS: &str = include_str!("../../../examples/shop/tests.yaml");

#[test]
fn the_shops_cases_go_as_they_must() {
    let (set, inventory) = shop();
    let cases = Cases::read(&source("tests.yaml", TESTS)).unwrap();
    let outcomes = cases.run(&set, &inventory);
    assert_eq!(outcomes.len(), 11);
    let failed: Vec<_> = outcomes.iter().filter(|o| o.failure.is_some()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_case_that_goes_otherwise_says_why_and_junit_has_it() {
    let (set, inventory) = shop();
    let text = "tests:\n- {name: 'a < b & c', from: shop/reports, to: shop/orders-db, port: 5432, expect: allow}\n\
                    - {from: shop/web, to: shop/orders, port: 8080, expect: allow, authentication: audit}\n\
                    - {from: shop/web, to: shop/orders, port: 8080, expect: allow, rule: 'web spec.ingress[0]'}\n\
                    - {from: nobody, to: shop/orders, port: 8080, expect: allow}\n";
    let cases = Cases::read(&source("t.yaml", text)).unwrap();
    let outcomes = cases.run(&set, &inventory);
    let failures: Vec<_> = outcomes
        .iter()
        .map(|o| o.failure.clone().unwrap())
        .collect();
    assert!(
        failures[0].starts_with(
            "shop/reports -> shop/orders-db tcp/5432 is denied: egress of shop/reports: no policy"
        ),
        "{failures:#?}"
    );
    assert!(
        failures[1].starts_with("authentication is required, not audit"),
        "{failures:#?}"
    );
    assert!(
        failures[2].starts_with("web spec.ingress[0] does not decide: "),
        "{failures:#?}"
    );
    assert!(
        failures[3].starts_with("no workload is called \"nobody\""),
        "{failures:#?}"
    );
    let xml = junit(&[("t.yaml".to_owned(), outcomes)]);
    assert!(xml.contains("tests=\"4\" failures=\"4\""), "{xml}");
    assert!(
        xml.contains("name=\"a &lt; b &amp; c\" file=\"t.yaml\" line=\"2\""),
        "{xml}"
    );
    assert_eq!(
        xml.matches("<testcase").count(),
        xml.matches("</testcase>").count()
    );
}

#[test]
fn a_broken_case_is_an_error_with_its_line() {
    let text = "tests:\n- {from: a, to: b, port: 1, expect: allow}\n- {from: a, to: b, port: 1, expect: maybe}\n\
                    - {from: a, port: 1, expect: deny}\n";
    let errors = Cases::read(&source("t.yaml", text)).unwrap_err();
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(
        lines[0].starts_with("t.yaml:3:3: tests[1]: unknown variant `maybe`"),
        "{lines:#?}"
    );
    assert!(
        lines[1].starts_with("t.yaml:4:3: tests[2]: missing field `to`"),
        "{lines:#?}"
    );
}
