//! Files of registration entries: what is read can be written in either form, and reads back the same.

use handfast_ca::client::admin::NewEntry;
use handfast_ca::client::{EntryForm, read_entries, write_entries};
use handfast_ca::model::Entry;

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(read) = read_entries(text).inspect_err(|error| assert!(!error.to_string().is_empty()))
    else {
        return;
    };
    let (new, entries): (Vec<NewEntry>, Vec<Entry>) = read
        .into_iter()
        .filter_map(|new| entry(&new).map(|entry| (new, entry)))
        .unzip();
    for form in [EntryForm::Yaml, EntryForm::Json] {
        let written = write_entries(&entries, form).expect("entries are written");
        let again = read_entries(&written).expect("what was written reads back");
        assert_eq!(again, new, "{written}");
    }
}

/// As the CA would keep it, if it says it in the words that the CA would.
fn entry(new: &NewEntry) -> Option<Entry> {
    let entry = Entry {
        id: String::new(),
        spiffe_id: new.spiffe_id.parse().ok()?,
        parent_id: match &new.parent {
            Some(parent) => Some(parent.parse().ok()?),
            None => None,
        },
        selectors: new
            .selectors
            .iter()
            .map(|text| text.parse().ok())
            .collect::<Option<_>>()?,
        labels: new.labels.clone(),
        workload_ttl_seconds: new.ttl.map(|ttl| ttl.as_secs() as u32),
        dns_names: new.dns_names.clone(),
        hint: new.hint.clone(),
        federates_with: new
            .federates_with
            .iter()
            .map(|text| text.as_str().try_into().ok())
            .collect::<Option<_>>()?,
        jwt_ttl_seconds: new.jwt_ttl.map(|ttl| ttl.as_secs() as u32),
        expires_at_ms: new.expires_at_ms,
        created_at_ms: 0,
        revision: 1,
    };
    let texts =
        |ids: &[&dyn ToString]| -> Vec<String> { ids.iter().map(|id| id.to_string()).collect() };
    let domains: Vec<&dyn ToString> = entry.federates_with.iter().map(|one| one as _).collect();
    let selectors: Vec<&dyn ToString> = entry.selectors.iter().map(|one| one as _).collect();
    let parent = entry.parent_id.as_ref().map(ToString::to_string);
    let same = entry.spiffe_id.to_string() == new.spiffe_id
        && parent == new.parent
        && texts(&selectors) == new.selectors
        && texts(&domains) == new.federates_with;
    same.then_some(entry)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let seeds = [YAML, JSON, FLOW];
    for seed in seeds {
        let read = read_entries(seed).expect("an example");
        assert!(read.iter().all(|new| entry(new).is_some()), "{read:?}");
    }
    seeds.map(Into::into).into()
}

const YAML: &str = "- spiffe_id: spiffe://example.org/web\n  parent_id: spiffe://example.org/handfast/node/web1\n  \
    selectors: ['unix:uid:1000', 'unix:path:/opt/web']\n  labels: {app: web, tier: \"1\"}\n  ttl_seconds: 900\n  \
    jwt_ttl_seconds: 60\n  dns_names: [web.example.org]\n  hint: internal\n  federates_with: [partner.example]\n  \
    expires_at_ms: 4000000000000\n";

const JSON: &str = r#"[{"spiffe_id":"spiffe://example.org/db","selectors":["cgroup:/system.slice/*.service"],"labels":{"app":"db"},"hint":"\u00e9: 'x' #"},
{"spiffe_id":"spiffe://example.org/db","selectors":["netns:web"]}]"#;

const FLOW: &str =
    "[{spiffe_id: spiffe://example.org/web, selectors: [netns:web], hint: \"0x1f\"}]";
