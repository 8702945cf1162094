//! Maps that an agent finds: those of another layout are refused with a way out, and never read; what in its own
//! is nobody's any more goes.

use crate::harness::process::command;
use crate::harness::wait;
use crate::support::{self, Mesh, SOON};

fn bpftool(mesh: &Mesh, words: &[&str]) -> String {
    let all = [&["-j", "map"], words].concat();
    let place = &mesh.authority.host().place;
    let said = place.run(&mut command("bpftool", &all), SOON);
    said.unwrap().success("bpftool").unwrap().stdout
}

#[test]
fn an_agent_refuses_maps_of_another_version_says_what_to_do_and_leaves_them_working() {
    let Some(_turn) = support::turn("map layout") else {
        return;
    };
    let mut mesh = Mesh::start();
    let pin = mesh.n1.bpf_dir().join("layout");
    let pin = pin.display().to_string();
    let recorded = bpftool(&mesh, &["dump", "pinned", &pin]);
    assert!(
        recorded.contains("value"),
        "no version is recorded: {recorded}"
    );
    let words = ["update", "pinned", &pin, "key", "0", "0", "0", "0", "value"];
    let another: Vec<&str> = words.into_iter().chain(["99", "0", "0", "0"]).collect();
    bpftool(&mesh, &another);

    mesh.n1.agent().unwrap().kill();
    mesh.n1.launch().unwrap();
    let ended = mesh.n1.agent().unwrap().wait(SOON).unwrap();
    assert_eq!(ended.code(), Some(1));
    let said = mesh.n1.agent().unwrap().output();
    let complaint = said.lines().last().unwrap_or_default().to_lowercase();
    for word in [
        "layout version 99",
        "handfast agent detach",
        &pin.replace("/layout", ""),
    ] {
        assert!(complaint.contains(word), "no {word:?} in: {complaint}");
    }
    // The gates stand as they stood.
    let pins = std::fs::read_dir(mesh.n1.bpf_dir()).unwrap().count();
    assert!(pins > 10, "only {pins} pins are left");
}

#[test]
fn a_prefix_that_became_nobodys_while_the_agent_was_away_is_taken_out() {
    let Some(_turn) = support::turn("left prefixes") else {
        return;
    };
    let mut mesh = Mesh::start();
    let pin = mesh.n1.bpf_dir().join("prefixes");
    let pin = pin.display().to_string();
    let prefixes = |mesh: &Mesh| -> Vec<serde_json::Value> {
        serde_json::from_str(&bpftool(mesh, &["dump", "pinned", &pin])).unwrap()
    };
    let bytes = |entry: &serde_json::Value, what: &str| -> Vec<String> {
        let all = entry[what].as_array().unwrap().iter();
        all.map(|byte| byte.as_str().unwrap().trim_start_matches("0x").to_owned())
            .collect()
    };
    mesh.n1.agent().unwrap().kill();
    let before = prefixes(&mesh);
    // 10.250.0.0/16, of the peer that another entry names.
    let left: Vec<String> = "70 0 0 0 0 0 0 0 0 0 0 0 0 0 ff ff a fa 0 0"
        .split(' ')
        .map(|byte| format!("{byte:0>2}"))
        .collect();
    let value = bytes(&before[0], "value");
    let key = left.iter().map(String::as_str);
    let mut words = vec!["update", "pinned", &pin, "key", "hex"];
    words.extend(key);
    words.extend(["value", "hex"]);
    words.extend(value.iter().map(String::as_str));
    bpftool(&mesh, &words);
    let there = |mesh: &Mesh| {
        prefixes(mesh)
            .iter()
            .any(|entry| bytes(entry, "key") == left)
    };
    assert!(there(&mesh));

    mesh.n1.run().unwrap();
    wait::until("the prefix is gone", SOON, || {
        Ok((!there(&mesh)).then_some(()))
    })
    .unwrap();
    let after = prefixes(&mesh);
    assert_eq!(after.len(), before.len(), "the others stay");
}
