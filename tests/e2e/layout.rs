//! Maps of another layout are refused with a way out, and never read.

use crate::harness::process::command;
use crate::support::{self, Mesh, SOON};

#[test]
fn an_agent_refuses_maps_of_another_version_says_what_to_do_and_leaves_them_working() {
    let Some(_turn) = support::turn("map layout") else {
        return;
    };
    let mut mesh = Mesh::start();
    let pin = mesh.n1.bpf_dir().join("layout");
    let bpftool = |words: &[&str]| {
        let mut all = vec!["-j", "map"];
        all.extend(words);
        let said = mesh
            .authority
            .host()
            .place
            .run(&mut command("bpftool", &all), SOON);
        said.unwrap().success("bpftool").unwrap().stdout
    };
    let pin = pin.display().to_string();
    let recorded = bpftool(&["dump", "pinned", &pin]);
    assert!(
        recorded.contains("value"),
        "no version is recorded: {recorded}"
    );
    let words = ["update", "pinned", &pin, "key", "0", "0", "0", "0", "value"];
    let another: Vec<&str> = words.into_iter().chain(["99", "0", "0", "0"]).collect();
    bpftool(&another);

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
