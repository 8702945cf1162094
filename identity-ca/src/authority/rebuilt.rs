//! A CA's folder made anew around a registry that comes from elsewhere: a backup.

use std::path::{Path, PathBuf};

use spiffe::TrustDomain;
use zeroize::{Zeroize, Zeroizing};

use super::folder::{self, Folder, STORE};
use super::keys::{self, SEALED, read_key, read_key_text};
use super::record::{Kind, Record, Standing};
use super::root::Root;
use super::seal::{self, PassphraseFile};
use super::set::Authorities;
use super::setup::{self, Setup};
use crate::Error;
use crate::bundle::{Fingerprint, pem};
use crate::certificate::Signer as _;
use crate::registry::{Change, Section, Store};

/// A private key under a passphrase, as a backup carries it.
#[derive(Debug, Clone)]
pub(crate) struct SealedKey {
    /// The name of its file.
    pub(crate) name: String,
    /// `ENCRYPTED PRIVATE KEY`.
    pub(crate) pem: String,
}

/// Where the root's key comes from when a CA is made anew.
#[derive(Debug, Clone)]
pub(crate) enum RootKey {
    /// From the backup's keys, or from nowhere: then it is kept offline.
    AsInFolder,
    /// From a file (PEM).
    File(PathBuf),
}

/// A CA that was made anew.
#[derive(Debug)]
pub(crate) struct Rebuilt<T> {
    pub(crate) root: Fingerprint,
    /// The issuing CA waits for the certificate of an offline root.
    pub(crate) waits_for_root: bool,
    /// What filling the store gave.
    pub(crate) filled: T,
}

impl SealedKey {
    /// Every key in a CA's folder, sealed by the passphrase in a file, which
    /// also opens those that are sealed already.
    pub(crate) fn all(dir: &Path, passphrase_file: &Path) -> Result<Vec<Self>, Error> {
        folder::check_folder(dir)?;
        let passphrase = PassphraseFile(passphrase_file.to_owned());
        let keys = Folder::open(dir, Some(passphrase_file.to_owned()))?.keys;
        let seal_one = |name: String| {
            let key = keys.read(&name)?;
            let pem = pem(SEALED, &seal::seal(&key.to_pkcs8(), &passphrase)?);
            Ok(Self { name, pem })
        };
        keys.names()?.into_iter().map(seal_one).collect()
    }
}

/// Makes the folder: all of it, or nothing. `fill` puts the registry's rows
/// into the empty store. An issuing CA or JWT key of this server whose private
/// key did not come along is succeeded by a new one.
pub(crate) async fn rebuild<T, F>(
    setup: &Setup,
    keys: Vec<SealedKey>,
    root_key: &RootKey,
    fill: impl FnOnce(Store) -> F,
) -> Result<Rebuilt<T>, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    setup::check(setup)?;
    folder::create(&setup.dir, |draft| {
        let draft = draft.to_owned();
        async move {
            let folder = Folder::make(&draft, setup)?;
            unseal(&folder, keys, setup.passphrase_file.as_deref())?;
            Store::create(&draft.join(STORE)).await?;
            let store = Store::open(&draft.join(STORE)).await?;
            let filled = fill(store.clone()).await?;
            let mut change = store.begin().await?;
            let authorities = Authorities::new(Record::all(&mut change).await?);
            let root = active_root(&authorities, &setup.trust_domain)?;
            if let RootKey::File(path) = root_key {
                let passphrase = setup.passphrase_file.clone().map(PassphraseFile);
                let key = read_key(path, passphrase.as_ref())?;
                root.check_key(&key)?;
                folder.keys.write(Kind::Root, &key)?;
            }
            let waits_for_root = succeed(&mut change, &folder, &authorities, &root).await?;
            change.number(Section::Bundle).await?;
            change.number(Section::Retired).await?;
            change.commit().await?;
            store.close().await;
            Ok(Rebuilt {
                root: Fingerprint::of(&root.certificate),
                waits_for_root,
                filled,
            })
        }
    })
    .await
}

fn unseal(
    folder: &Folder,
    keys: Vec<SealedKey>,
    passphrase_file: Option<&Path>,
) -> Result<(), Error> {
    let passphrase = passphrase_file.map(|path| PassphraseFile(path.to_owned()));
    for mut key in keys {
        let place = Path::new(&key.name);
        let text = Zeroizing::new(std::mem::take(&mut key.pem).into_bytes());
        let opened = read_key_text(&text, place, passphrase.as_ref())?;
        let kind = keys::kind_of(&key.name, opened.public_key()).ok_or_else(|| {
            Error::invalid(
                "backup",
                format!("{} is another key than it says", key.name),
            )
        })?;
        folder.keys.write(kind, &opened)?;
        key.name.zeroize();
    }
    Ok(())
}

fn active_root(authorities: &Authorities, trust_domain: &TrustDomain) -> Result<Root, Error> {
    let record = authorities
        .active_root()
        .ok_or_else(|| Error::invalid("backup", "it holds no root that signs"))?;
    Root::read(&record.der, trust_domain)
}

/// New authorities for those of this server that lost their keys; says whether one waits for the root.
async fn succeed(
    change: &mut Change,
    folder: &Folder,
    authorities: &Authorities,
    root: &Root,
) -> Result<bool, Error> {
    let mut waits = false;
    for kind in [Kind::Issuing, Kind::Jwt] {
        let ours = |record: &&Record| record.kind == kind && record.server == folder.server;
        let now = crate::now_ms();
        let usable = |record: &Record| folder.keys.has(&record.key) && record.not_after_ms > now;
        let signs = authorities.active(kind, &folder.server).is_some_and(usable);
        for lost in authorities.all().iter().filter(ours) {
            if lost.standing.needs_key() && !usable(lost) {
                match lost.standing {
                    Standing::Active | Standing::Superseded => {
                        Record::stand(change, &lost.id, Standing::Retired).await?;
                    }
                    _ => Record::delete(change, &lost.id).await?,
                }
            }
        }
        if signs {
            continue;
        }
        let next = match kind {
            Kind::Jwt => setup::first_jwt_key(folder)?,
            _ => setup::first_issuing(folder, root)?,
        };
        waits |= next.standing == Standing::Requested;
        next.insert(change).await?;
    }
    Ok(waits)
}
