//! Lines of the audit log, and the signed heads that agents keep.

use handfast_ca::audit::{Act, AuditHead, Hash, Record};
use handfast_ca::bundle::TrustBundle;

/// What reads is sealed: writing it again gives the same hash.
pub fn run(data: &[u8]) {
    if let Ok((record, hash)) = Record::from_line(data) {
        let (line, again) = record
            .to_line()
            .expect("a record that was read can be written");
        let canonical = line.trim_end().as_bytes() == data;
        assert_eq!(canonical, hash == again, "another text has the same hash");
    }
    let domain = "example.org".try_into().expect("a trust domain");
    let bundle = TrustBundle::new(domain, 1, []).expect("an empty bundle");
    assert!(
        AuditHead::from_bytes(data, &bundle).is_err(),
        "nobody signed it"
    );
}

pub fn seeds() -> Vec<Vec<u8>> {
    let acts = [
        Act::done("entry.create", "uid:0", "spiffe://example.org/web").with("id", "1"),
        Act::refused(
            "svid.issue",
            "spiffe://example.org/handfast/node/a",
            "proof",
            "no entry",
        ),
        Act::done("ca.start", "ca", "").with("quote", ",\"hash\":\"00\"}"),
    ];
    acts.into_iter()
        .enumerate()
        .map(|(number, act)| {
            let record = Record::new(act, number as u64, 1_700_000_000_000, "ca", Hash::default());
            let (line, _) = record.to_line().expect("a line");
            line.trim_end().as_bytes().to_vec()
        })
        .collect()
}
