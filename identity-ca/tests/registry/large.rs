//! A hundred thousand entries: how long a server takes to serve them, and what it holds.

use std::time::Instant;

use handfast_ca::server::Server;

use super::common::{Ca, options};
use super::entries::wanted;

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let digits: String = line.unwrap().chars().filter(char::is_ascii_digit).collect();
    digits.parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute; run it in release mode"]
async fn a_hundred_thousand_entries_are_served_soon_and_held_in_little() {
    let mut ca = Ca::start().await;
    let many: Vec<_> = (0..100_000)
        .map(|n| {
            let mut entry = wanted(&format!("team{}/workload{n}", n % 100));
            entry.selectors = vec![format!("unix:uid:{n}"), format!("unix:path:/srv/w{n}/bin")];
            entry.labels = [("app".to_owned(), format!("w{n}"))].into();
            entry
        })
        .collect();
    let since = Instant::now();
    ca.admin.import_entries(&many, false, false).await.unwrap();
    println!("imported in {:?}", since.elapsed());
    drop(many);
    let one = Instant::now();
    ca.admin.create_entry(&wanted("one")).await.unwrap();
    println!("one more in {:?}", one.elapsed());
    let folder = ca.stop().await;

    let before = resident_mib();
    let since = Instant::now();
    let options = options(&folder, 0);
    let server = Server::bind(&options).await.unwrap();
    let ready = since.elapsed();
    let mut ca = Ca::run(folder, &options, server).await;
    assert_eq!(ca.admin.status().await.unwrap().entries, 100_001);
    println!(
        "serving after {ready:?}; {before} MiB before, {} MiB now",
        resident_mib()
    );
    ca.stop().await;
}
