//! How a CA is made: its root, its first issuing CA and JWT key, an empty registry; all of it, or nothing.

use std::path::PathBuf;

use ipnet::IpNet;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use spiffe::TrustDomain;

use super::Lifetimes;
use super::folder::{self, Folder, REQUEST, STORE};
use super::keys::{read_key, write_private};
use super::record::{Kind, Record, Standing};
use super::root::Root;
use super::seal::PassphraseFile;
use super::set::Authorities;
use super::{Keys, jwt};
use crate::bundle::{Fingerprint, pem};
use crate::certificate::{CsrKey, PrivateKey};
use crate::registry::{Change, Section, Store};
use crate::{Error, now_ms};

/// How a CA is set up; fixed when it is made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Setup {
    /// The folder that is made.
    pub dir: PathBuf,
    /// The trust domain that it signs for.
    pub trust_domain: TrustDomain,
    /// Nodes get prefixes out of these.
    pub prefix_ranges: Vec<IpNet>,
    /// The name of this server among those that share the trust domain.
    pub server: String,
    /// Lifetimes of what it signs.
    pub lifetimes: Lifetimes,
    /// Where the root comes from.
    pub root: RootSource,
    /// A file whose first line seals the root's key.
    pub passphrase_file: Option<PathBuf>,
    /// The PostgreSQL database that several servers share
    /// (`postgres://USER@HOST/DATABASE`); a file in the folder without it. If
    /// it has a root already, this becomes a further server under that root.
    pub store: Option<String>,
}

/// Where a CA's root comes from.
#[derive(Debug, Clone)]
pub enum RootSource {
    /// A new key, kept in the CA's folder.
    Generate,
    /// A CA certificate and its key from files; the key is copied into the folder.
    Disk {
        /// PEM.
        certificate: PathBuf,
        /// PEM, PKCS#8, P-256; sealed or not.
        key: PathBuf,
    },
    /// A certificate whose key is kept elsewhere: the folder gets a request for
    /// an issuing CA, and serves once its certificate is installed.
    Offline {
        /// PEM.
        certificate: PathBuf,
    },
}

impl Setup {
    /// A CA named `ca` with a root of its own and the usual lifetimes.
    pub fn new(dir: PathBuf, trust_domain: TrustDomain, prefix_ranges: Vec<IpNet>) -> Self {
        Self {
            dir,
            trust_domain,
            prefix_ranges,
            server: "ca".to_owned(),
            lifetimes: Lifetimes::default(),
            root: RootSource::Generate,
            passphrase_file: None,
            store: None,
        }
    }
}

/// Reads the name of a trust domain as an operator writes it: lower case, no scheme, no path.
pub fn trust_domain(text: &str) -> Result<TrustDomain, Error> {
    let shown: String = text.chars().take(64).collect();
    let bad = |problem: String| Error::invalid(format!("trust domain {shown:?}"), problem);
    let domain = TrustDomain::new(text)
        .map_err(|error| bad(format!("{error} (an example: example.org)")))?;
    if domain.as_str() != text {
        return Err(bad(format!(
            "write it without scheme and path, in lower case: {domain}"
        )));
    }
    Ok(domain)
}

/// Makes a CA in a folder: all of it, or nothing. Gives the root's fingerprint.
pub async fn init(setup: &Setup) -> Result<Fingerprint, Error> {
    check(setup)?;
    check_ranges(&setup.prefix_ranges)?;
    folder::create(&setup.dir, |draft| {
        let draft = draft.to_owned();
        let setup = setup.clone();
        async move {
            let folder = Folder::make(&draft, &setup)?;
            if setup.store.is_none() {
                Store::create(&draft.join(STORE)).await?;
            }
            let store = folder.open_store().await?;
            let mut change = store.begin().await?;
            let known = Authorities::new(Record::all(&mut change).await?);
            let (root, records) = first_records(&setup, &folder, &known)?;
            insert_all(&mut change, &records).await?;
            change.commit().await?;
            store.close().await;
            Ok(Fingerprint::of(&root.certificate))
        }
    })
    .await
}

pub(super) fn check(setup: &Setup) -> Result<(), Error> {
    let ranges = &setup.prefix_ranges;
    if ranges.iter().any(|range| range.trunc() != *range) {
        return Err(Error::invalid(
            "prefix range",
            "bits are set behind its length",
        ));
    }
    setup.server.parse::<crate::NodeName>().map_err(|_| {
        Error::invalid(
            format!("server name {:?}", setup.server),
            "letters, digits, `.`, `_` and `-` only",
        )
    })?;
    Ok(())
}

/// Of these no workload has an address.
const NO_WORKLOADS: [(&str, &str); 6] = [
    ("127.0.0.0/8", "loopback"),
    ("::1/128", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("fe80::/10", "link-local"),
    ("224.0.0.0/3", "multicast and beyond"),
    ("ff00::/8", "multicast"),
];

/// Ranges of a new CA: of workloads only, and each address in one of them. What a CA has, it keeps.
fn check_ranges(ranges: &[IpNet]) -> Result<(), Error> {
    let overlap = |one: &IpNet, other: &IpNet| one.contains(other) || other.contains(one);
    for (position, range) in ranges.iter().enumerate() {
        let bad = |problem: String| Err(Error::invalid(format!("prefix range {range}"), problem));
        if range.prefix_len() == 0 {
            return bad(
                "holds every address there is, the CA's and the nodes' own too; give the range that workloads have"
                    .to_owned(),
            );
        }
        let before = ranges.iter().take(position);
        if let Some(other) = before.into_iter().find(|other| overlap(range, other)) {
            return bad(format!("overlaps {other}, which is given too"));
        }
        for (reserved, what) in NO_WORKLOADS {
            let reserved: IpNet = reserved
                .parse()
                .map_err(|_| Error::invalid("prefix range", reserved))?;
            if overlap(range, &reserved) {
                return bad(format!(
                    "overlaps {reserved} ({what}): no workload has an address there"
                ));
            }
        }
    }
    Ok(())
}

async fn insert_all(change: &mut Change, records: &[Record]) -> Result<(), Error> {
    for record in records {
        record.insert(change).await?;
    }
    change.number(Section::Bundle).await?;
    Ok(())
}

/// What a new server begins with: a root too, unless the store has one.
fn first_records(
    setup: &Setup,
    folder: &Folder,
    known: &Authorities,
) -> Result<(Root, Vec<Record>), Error> {
    let taken = |record: &&Record| record.server == setup.server;
    if let Some(other) = known.all().iter().find(taken) {
        return Err(Error::Exists {
            what: "server",
            name: other.server.clone(),
            hint: "give this one another name with --server".to_owned(),
        });
    }
    let (root, mut records) = match known.active_root() {
        Some(_) if !matches!(setup.root, RootSource::Generate) => {
            return Err(Error::invalid(
                "root",
                "the store has one already, which all its servers share",
            ));
        }
        Some(present) => (Root::read(&present.der, &setup.trust_domain)?, Vec::new()),
        None => {
            let (root, made) = first_root(setup, &folder.keys)?;
            (root, vec![made])
        }
    };
    records.push(first_issuing(folder, &root)?);
    records.push(first_jwt_key(folder)?);
    Ok((root, records))
}

/// The root of a new CA, and its key in the folder unless it is kept offline.
fn first_root(setup: &Setup, keys: &Keys) -> Result<(Root, Record), Error> {
    let domain = &setup.trust_domain;
    let (root, key) = match &setup.root {
        RootSource::Generate => {
            let (key, root) = Root::make(domain, setup.lifetimes.root)?;
            (root, Some(key))
        }
        RootSource::Disk { certificate, key } => {
            let root = Root::read(&read_certificate(certificate)?, domain)?;
            let passphrase = setup.passphrase_file.clone().map(PassphraseFile);
            let key = read_key(key, passphrase.as_ref())?;
            root.check_key(&key)?;
            (root, Some(key))
        }
        RootSource::Offline { certificate } => {
            (Root::read(&read_certificate(certificate)?, domain)?, None)
        }
    };
    if let Some(key) = &key {
        keys.write(Kind::Root, key)?;
    }
    let record = Record::of_root(&root, Standing::Active);
    Ok((root, record))
}

pub(super) fn first_issuing(folder: &Folder, root: &Root) -> Result<Record, Error> {
    let key = PrivateKey::generate()?;
    let name = folder.keys.write(Kind::Issuing, &key)?;
    let root_key = super::keys::name(Kind::Root, &root.public_key);
    let csr = key.csr()?;
    if !folder.keys.has(&root_key) {
        write_private(&folder.dir.join(REQUEST), &pem("CERTIFICATE REQUEST", &csr))?;
        return Ok(Record::of_request(
            csr,
            &folder.server,
            &root.id(),
            name,
            None,
        ));
    }
    let certificate = root.sign_issuing(
        folder.keys.read(&root_key)?,
        &folder.trust_domain,
        &folder.server,
        &CsrKey::read(&csr)?,
        folder.lifetimes.issuing,
    )?;
    Record::of_issuing(
        &certificate,
        &folder.server,
        &root.id(),
        name,
        Standing::Active,
    )
}

pub(super) fn first_jwt_key(folder: &Folder) -> Result<Record, Error> {
    let key = PrivateKey::generate()?;
    let name = folder.keys.write(Kind::Jwt, &key)?;
    let life = folder.lifetimes.jwt_key;
    jwt::record(&key, &folder.server, name, life, Standing::Active)
}

/// A certificate from a PEM file.
pub(super) fn read_certificate(path: &std::path::Path) -> Result<CertificateDer<'static>, Error> {
    let text = std::fs::read(path).map_err(Error::io("cannot read", path))?;
    CertificateDer::from_pem_slice(&text).map_err(|error| Error::Folder {
        path: path.to_owned(),
        problem: format!("holds no certificate (PEM): {error}"),
    })
}

impl Record {
    pub(crate) fn of_root(root: &Root, standing: Standing) -> Self {
        Self {
            id: root.id(),
            kind: Kind::Root,
            server: String::new(),
            standing,
            parent: String::new(),
            der: root.certificate.to_vec(),
            cross_signed: None,
            endorsement: None,
            key: super::keys::name(Kind::Root, &root.public_key),
            not_before_ms: root.not_before * 1000,
            not_after_ms: root.not_after * 1000,
            created_ms: now_ms(),
            compromised: false,
        }
    }

    pub(crate) fn of_issuing(
        certificate: &CertificateDer<'_>,
        server: &str,
        root: &str,
        key: String,
        standing: Standing,
    ) -> Result<Self, Error> {
        let (not_before, not_after) = super::issuing::validity(certificate)?;
        Ok(Self {
            id: super::certificate_id(certificate),
            kind: Kind::Issuing,
            server: server.to_owned(),
            standing,
            parent: root.to_owned(),
            der: certificate.to_vec(),
            cross_signed: None,
            endorsement: None,
            key,
            not_before_ms: not_before * 1000,
            not_after_ms: not_after * 1000,
            created_ms: now_ms(),
            compromised: false,
        })
    }

    /// A key of an issuing CA that waits for its certificate.
    pub(crate) fn of_request(
        csr: Vec<u8>,
        server: &str,
        root: &str,
        key: String,
        endorsement: Option<Vec<u8>>,
    ) -> Self {
        Self {
            id: key.clone(),
            kind: Kind::Issuing,
            server: server.to_owned(),
            standing: Standing::Requested,
            parent: root.to_owned(),
            der: csr,
            cross_signed: None,
            endorsement,
            key,
            not_before_ms: 0,
            not_after_ms: 0,
            created_ms: now_ms(),
            compromised: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(ranges: &[&str]) -> Result<(), String> {
        let ranges: Vec<IpNet> = ranges.iter().map(|text| text.parse().unwrap()).collect();
        check_ranges(&ranges).map_err(|error| error.to_string())
    }

    #[test]
    fn ranges_are_of_workloads_and_disjoint() {
        verdict(&["10.0.0.0/8", "172.16.0.0/12", "fd00::/16", "2001:db8::/32"]).unwrap();
        let cases: &[(&[&str], &str)] = &[
            (&["0.0.0.0/0"], "every address"),
            (&["::/0"], "every address"),
            (&["10.0.0.0/8", "10.1.0.0/16"], "overlaps 10.0.0.0/8"),
            (&["10.1.0.0/16", "10.0.0.0/8"], "overlaps 10.1.0.0/16"),
            (&["127.0.0.0/16"], "loopback"),
            (&["0.0.0.0/1"], "loopback"),
            (&["::/16"], "loopback"),
            (&["169.254.1.0/24"], "link-local"),
            (&["239.0.0.0/8"], "multicast"),
            (&["fe80::/64"], "link-local"),
        ];
        for (ranges, words) in cases {
            let error = verdict(ranges).unwrap_err();
            assert!(error.contains(words), "{ranges:?}: {error}");
        }
    }
}
