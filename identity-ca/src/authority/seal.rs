//! Private keys at rest under a passphrase: PKCS#8 `ENCRYPTED PRIVATE KEY`, PBES2 with PBKDF2-HMAC-SHA-256 and
//! AES-256-CBC (RFC 5958 section 3, RFC 8018), which `openssl pkcs8` reads too.
//!
//! The passphrase is read from its file each time that it is needed, and kept nowhere.

use std::fs;
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::cipher::{
    AES_256, DecryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey,
    UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::pbkdf2::{self, PBKDF2_HMAC_SHA256};
use yasna::models::ObjectIdentifier;
use yasna::{ASN1Error, ASN1ErrorKind, ASN1Result, BERReader, DERWriter};
use zeroize::Zeroizing;

use crate::Error;

/// What OWASP recommends for PBKDF2-HMAC-SHA-256.
const ITERATIONS: u32 = 600_000;
/// A file that asks for more work than this is not ours.
const MAX_ITERATIONS: u32 = 10_000_000;
const MIN_PASSPHRASE: usize = 12;
const MAX_PASSPHRASE: u64 = 4096;
const BLOCK: usize = 16;

const PBES2: &[u64] = &[1, 2, 840, 113_549, 1, 5, 13];
const PBKDF2: &[u64] = &[1, 2, 840, 113_549, 1, 5, 12];
const HMAC_SHA256: &[u64] = &[1, 2, 840, 113_549, 2, 9];
const AES_256_CBC: &[u64] = &[2, 16, 840, 1, 101, 3, 4, 1, 42];

/// Where the passphrase is.
#[derive(Debug, Clone)]
pub(super) struct PassphraseFile(pub(super) PathBuf);

impl PassphraseFile {
    /// The first line, from a file that nobody else can read.
    fn read(&self) -> Result<Zeroizing<Vec<u8>>, Error> {
        let path = &self.0;
        let metadata = fs::metadata(path).map_err(Error::io("cannot read", path))?;
        let problem = |problem: String| Error::Folder {
            path: path.clone(),
            problem,
        };
        if metadata.mode() & 0o077 != 0 {
            return Err(problem(format!(
                "this passphrase file can be read by others (mode {:o}): close it with `chmod 600 {}` and change the passphrase",
                metadata.mode() & 0o777,
                path.display()
            )));
        }
        if metadata.len() > MAX_PASSPHRASE {
            return Err(problem(format!(
                "is too long for a passphrase file ({} bytes)",
                metadata.len()
            )));
        }
        let mut text = Zeroizing::new(fs::read(path).map_err(Error::io("cannot read", path))?);
        let end = text.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        if let Some(end) = end {
            text.truncate(end);
        }
        if text.len() < MIN_PASSPHRASE {
            return Err(problem(format!(
                "the first line is the passphrase; it has {} bytes, take {MIN_PASSPHRASE} at least",
                text.len()
            )));
        }
        Ok(text)
    }
}

/// Encrypts a PKCS#8 key; gives DER of an EncryptedPrivateKeyInfo.
pub(super) fn seal(pkcs8: &[u8], passphrase: &PassphraseFile) -> Result<Vec<u8>, Error> {
    let salt: [u8; 16] = rand::random();
    let key = derive(passphrase, &salt, ITERATIONS)?;
    let failed = |_| Error::Crypto("the key could not be encrypted".to_owned());
    let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(key).map_err(failed)?;
    // With room for the padding: a buffer that grows leaves a copy of the key.
    let mut text = Zeroizing::new(Vec::with_capacity(pkcs8.len() + BLOCK));
    text.extend_from_slice(pkcs8);
    let DecryptionContext::Iv128(iv) = cipher.encrypt(&mut *text).map_err(failed)? else {
        return Err(Error::Crypto("AES-CBC has an IV of 16 bytes".to_owned()));
    };
    Ok(yasna::construct_der(|writer| {
        writer.write_sequence(|info| {
            info.next().write_sequence(|algorithm| {
                write_oid(algorithm.next(), PBES2);
                algorithm.next().write_sequence(|parameters| {
                    parameters.next().write_sequence(|derivation| {
                        write_oid(derivation.next(), PBKDF2);
                        derivation.next().write_sequence(|parameters| {
                            parameters.next().write_bytes(&salt);
                            parameters.next().write_u32(ITERATIONS);
                            parameters.next().write_sequence(|prf| {
                                write_oid(prf.next(), HMAC_SHA256);
                                prf.next().write_null();
                            });
                        });
                    });
                    parameters.next().write_sequence(|encryption| {
                        write_oid(encryption.next(), AES_256_CBC);
                        encryption.next().write_bytes(iv.as_ref());
                    });
                });
            });
            info.next().write_bytes(&text);
        });
    }))
}

/// Decrypts what [`seal`] made; gives a PKCS#8 key.
pub(super) fn open(
    der: &[u8],
    path: &Path,
    passphrase: &PassphraseFile,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let problem = |problem: &str| Error::Folder {
        path: path.to_owned(),
        problem: problem.to_owned(),
    };
    let sealed = yasna::parse_der(der, read).map_err(|_| {
        problem(
            "is not encrypted as handfast does it (PBES2, PBKDF2 with HMAC-SHA-256, AES-256-CBC)",
        )
    })?;
    let wrong = || problem("does not open with this passphrase: nothing was changed");
    let key = derive(passphrase, &sealed.salt, sealed.iterations)?;
    let cipher = PaddedBlockDecryptingKey::cbc_pkcs7(key).map_err(|_| wrong())?;
    let mut text = Zeroizing::new(sealed.data);
    let iv = DecryptionContext::Iv128(FixedLength::from(sealed.iv));
    let length = cipher.decrypt(&mut text, iv).map_err(|_| wrong())?.len();
    text.truncate(length);
    // One wrong passphrase in 256 leaves valid padding; the caller parses the key, which says so.
    Ok(text)
}

struct Sealed {
    salt: Vec<u8>,
    iterations: u32,
    iv: [u8; BLOCK],
    data: Vec<u8>,
}

fn read(reader: BERReader<'_, '_>) -> ASN1Result<Sealed> {
    let invalid = || ASN1Error::new(ASN1ErrorKind::Invalid);
    reader.read_sequence(|info| {
        let (salt, iterations, iv) = info.next().read_sequence(|algorithm| {
            expect_oid(algorithm.next(), PBES2)?;
            algorithm.next().read_sequence(|parameters| {
                let (salt, iterations) = parameters.next().read_sequence(|derivation| {
                    expect_oid(derivation.next(), PBKDF2)?;
                    derivation.next().read_sequence(|parameters| {
                        let salt = parameters.next().read_bytes()?;
                        let iterations = parameters.next().read_u32()?;
                        parameters.next().read_sequence(|prf| {
                            expect_oid(prf.next(), HMAC_SHA256)?;
                            prf.next().read_null()
                        })?;
                        Ok((salt, iterations))
                    })
                })?;
                let iv = parameters.next().read_sequence(|encryption| {
                    expect_oid(encryption.next(), AES_256_CBC)?;
                    encryption.next().read_bytes()
                })?;
                Ok((salt, iterations, iv))
            })
        })?;
        if iterations == 0 || iterations > MAX_ITERATIONS {
            return Err(invalid());
        }
        Ok(Sealed {
            salt,
            iterations,
            iv: iv.try_into().map_err(|_| invalid())?,
            data: info.next().read_bytes()?,
        })
    })
}

fn derive(
    passphrase: &PassphraseFile,
    salt: &[u8],
    iterations: u32,
) -> Result<UnboundCipherKey, Error> {
    let secret = passphrase.read()?;
    let iterations = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    let mut key = Zeroizing::new([0; 32]);
    pbkdf2::derive(PBKDF2_HMAC_SHA256, iterations, salt, &secret, &mut *key);
    UnboundCipherKey::new(&AES_256, &*key)
        .map_err(|_| Error::Crypto("the passphrase made no key".to_owned()))
}

fn write_oid(writer: DERWriter<'_>, oid: &[u64]) {
    writer.write_oid(&ObjectIdentifier::from_slice(oid));
}

fn expect_oid(reader: BERReader<'_, '_>, oid: &[u64]) -> ASN1Result<()> {
    if reader.read_oid()? == ObjectIdentifier::from_slice(oid) {
        Ok(())
    } else {
        Err(ASN1Error::new(ASN1ErrorKind::Invalid))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;
    use crate::bundle::pem;
    use crate::certificate::{PrivateKey, Signer};

    fn passphrase(folder: &Path, text: &str) -> PassphraseFile {
        let path = folder.join("passphrase");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        PassphraseFile(path)
    }

    #[test]
    fn a_sealed_key_opens_with_its_passphrase_alone() {
        let folder = tempfile::tempdir().unwrap();
        let right = passphrase(folder.path(), "correct horse battery\n");
        let key = PrivateKey::generate().unwrap().to_pkcs8();
        let sealed = seal(&key, &right).unwrap();
        assert!(
            !sealed
                .windows(32)
                .any(|part| key.windows(32).any(|of| of == part))
        );
        assert_eq!(*open(&sealed, folder.path(), &right).unwrap(), *key);
        let wrong = passphrase(folder.path(), "correct horse battexy\n");
        let opened = open(&sealed, folder.path(), &wrong).ok();
        assert!(opened.is_none_or(|opened| PrivateKey::from_pkcs8(&opened).is_err()));
        for length in 0..sealed.len() {
            assert!(open(&sealed[..length], folder.path(), &wrong).is_err());
        }
    }

    #[test]
    fn openssl_reads_it_too() {
        let folder = tempfile::tempdir().unwrap();
        let file = passphrase(folder.path(), "correct horse battery");
        let made = PrivateKey::generate().unwrap();
        let key = made.to_pkcs8();
        let sealed = folder.path().join("key.pem");
        fs::write(
            &sealed,
            pem("ENCRYPTED PRIVATE KEY", &seal(&key, &file).unwrap()),
        )
        .unwrap();
        let out = Command::new("openssl")
            .args([
                "pkcs8",
                "-topk8",
                "-nocrypt",
                "-passin",
                &format!("file:{}", file.0.display()),
            ])
            .args(["-in", sealed.to_str().unwrap(), "-outform", "DER"])
            .output();
        let Ok(out) = out else {
            eprintln!("skipped: there is no openssl here");
            return;
        };
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let opened = PrivateKey::from_pkcs8(&out.stdout).unwrap();
        assert_eq!(opened.public_key(), made.public_key());
    }

    #[test]
    fn a_passphrase_that_others_can_read_or_guess_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let short = passphrase(folder.path(), "short\n");
        assert!(
            short
                .read()
                .unwrap_err()
                .to_string()
                .contains("12 at least")
        );
        let open = passphrase(folder.path(), "correct horse battery\n");
        fs::set_permissions(&open.0, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = open.read().unwrap_err().to_string();
        assert!(refused.contains("chmod 600"), "{refused}");
    }
}
