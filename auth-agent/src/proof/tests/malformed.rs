//! Every part of an authenticator wrong in every way that RFC 9261 and RFC 8446 leave room for, behind a Finished
//! that is right: what is refused is refused for its own fault.

use super::*;

/// Certificate, CertificateVerify, Finished's body: as the maker says, with the right MAC unless it says otherwise.
struct Forgery<'a> {
    session: &'a Session,
    identity: &'a Identity,
    context: [u8; 32],
}

impl Forgery<'_> {
    fn certificate(&self) -> Vec<u8> {
        message::certificate(&self.context, &self.identity.chain)
    }

    fn transcript(&self, parts: &[&[u8]]) -> Vec<u8> {
        let client = &self.session.client;
        client.transcript(Role::Client, parts).as_ref().to_vec()
    }

    /// CertificateVerify over any content.
    fn signed(&self, content: &[u8]) -> Vec<u8> {
        message::certificate_verify(&self.identity.key.sign(content).unwrap())
    }

    fn verify_for(&self, certificate: &[u8]) -> Vec<u8> {
        let asked = message::request(&self.context);
        let transcript = self.transcript(&[&asked, certificate]);
        self.signed(&message::signature_content(&transcript))
    }

    fn mac(&self, certificate: &[u8], verify: &[u8]) -> Vec<u8> {
        let asked = message::request(&self.context);
        let transcript = self.transcript(&[&asked, certificate, verify]);
        let key = self.session.client.finished_key(Role::Client);
        hmac::sign(&key, &transcript).as_ref().to_vec()
    }

    /// The whole, of a Certificate and a CertificateVerify as they are.
    fn whole(&self, certificate: &[u8], verify: &[u8]) -> Vec<u8> {
        let mac = self.mac(certificate, verify);
        [certificate, verify, &message::finished(&mac)].concat()
    }

    fn refused(&self, bytes: &[u8], what: &str) -> ProofError {
        let outcome = super::verify(&self.session.server, bytes, Some(&self.context));
        outcome.expect_err(what)
    }
}

fn forge(test: impl FnOnce(Forgery<'_>)) {
    let (session, identity) = (session(), identity());
    test(Forgery {
        session: &session,
        identity: &identity,
        context: GRANTED,
    });
}

/// A message of this type around a body.
fn wrapped(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

/// Certificate's body: context and list, each behind its length.
fn certificate_of(context: &[u8], list: &[u8]) -> Vec<u8> {
    let length = u32::try_from(list.len()).unwrap().to_be_bytes();
    let size = u8::try_from(context.len()).unwrap();
    wrapped(11, &[&[size], context, &length[1..], list].concat())
}

fn entry(certificate: &[u8], extensions: &[u8]) -> Vec<u8> {
    let length = u32::try_from(certificate.len()).unwrap().to_be_bytes();
    let size = u16::try_from(extensions.len()).unwrap().to_be_bytes();
    [&length[1..], certificate, &size, extensions].concat()
}

#[test]
fn the_forgers_tools_make_what_is_right_where_nothing_is_wrong() {
    forge(|forgery| {
        let leaf = entry(&forgery.identity.chain[0], &[]);
        let certificate = certificate_of(&GRANTED, &leaf);
        let whole = forgery.whole(&certificate, &forgery.verify_for(&certificate));
        let server = &forgery.session.server;
        assert!(super::verify(server, &whole, Some(&GRANTED)).is_ok());
    });
}

#[test]
fn a_certificate_message_that_is_not_as_it_must_be_is_refused() {
    forge(|forgery| {
        let leaf = forgery.identity.chain[0].to_vec();
        let good = entry(&leaf, &[]);
        let status_request = [0, 5, 0, 0];
        let mut long_list = certificate_of(&GRANTED, &good);
        long_list[4 + 33 + 2] += 1;
        let mut short_list = certificate_of(&GRANTED, &good);
        short_list[4 + 33 + 2] -= 1;
        let with_rest = wrapped(11, &[&certificate_of(&GRANTED, &good)[4..], &[0]].concat());
        let variants = [
            ("no context", certificate_of(&[], &good)),
            ("a short context", certificate_of(&GRANTED[1..], &good)),
            ("a long context", certificate_of(&[7; 33], &good)),
            ("no certificate", certificate_of(&GRANTED, &[])),
            ("an empty one", certificate_of(&GRANTED, &entry(&[], &[]))),
            (
                "an empty one behind a good one",
                certificate_of(&GRANTED, &[good.clone(), entry(&[], &[])].concat()),
            ),
            (
                "an extension that nobody asked for",
                certificate_of(&GRANTED, &entry(&leaf, &status_request)),
            ),
            (
                "an entry without extensions' length",
                certificate_of(&GRANTED, &good[..good.len() - 2]),
            ),
            ("a list that claims too much", long_list),
            ("a list that claims too little", short_list),
            ("bytes behind the list", with_rest),
            (
                "no DER",
                certificate_of(&GRANTED, &entry(&[0x30, 0x80, 1], &[])),
            ),
            (
                "a key instead",
                certificate_of(&GRANTED, &entry(&leaf[..40], &[])),
            ),
        ];
        for (what, certificate) in variants {
            let whole = forgery.whole(&certificate, &forgery.verify_for(&certificate));
            let error = forgery.refused(&whole, what);
            let own_fault = matches!(error, ProofError::Malformed(_) | ProofError::Certificate(_));
            assert!(own_fault, "{what}: {error}");
        }
    });
}

#[test]
fn a_certificate_verify_that_is_not_as_it_must_be_is_refused() {
    forge(|forgery| {
        let certificate = forgery.certificate();
        let good = forgery.verify_for(&certificate);
        // Every scheme that TLS 1.3 names but the one that was offered, and those that it forbids.
        let others = [
            0x0201, 0x0203, 0x0401, 0x0501, 0x0503, 0x0601, 0x0603, 0x0804, 0x0805, 0x0806, 0x0807,
            0x0808, 0x0809, 0x0904, 0x0000, 0xffff_u16,
        ];
        for scheme in others {
            let mut other = good.clone();
            other[4..6].copy_from_slice(&scheme.to_be_bytes());
            let error = forgery.refused(&forgery.whole(&certificate, &other), "a scheme");
            assert_eq!(error, ProofError::Scheme(scheme));
        }
        let with_rest = wrapped(15, &[&good[4..], &[0]].concat());
        let variants = [
            ("an empty body", wrapped(15, &[])),
            ("a scheme alone", wrapped(15, &[4, 3])),
            ("no signature", message::certificate_verify(&[])),
            ("noughts", message::certificate_verify(&[0; 70])),
            ("a signature cut off", wrapped(15, &good[4..good.len() - 1])),
            ("bytes behind the signature", with_rest),
            ("a longer signature", {
                let signature = [&good[8..], &[0]].concat();
                message::certificate_verify(&signature)
            }),
        ];
        for (what, verify) in variants {
            let error = forgery.refused(&forgery.whole(&certificate, &verify), what);
            let own_fault = matches!(error, ProofError::Malformed(_) | ProofError::Signature);
            assert!(own_fault, "{what}: {error}");
        }
    });
}

#[test]
fn a_signature_over_anything_else_is_refused() {
    forge(|forgery| {
        let certificate = forgery.certificate();
        let asked = message::request(&GRANTED);
        let right = forgery.transcript(&[&asked, &certificate]);
        let content =
            |context: &[u8], transcript: &[u8]| [&[0x20; 64][..], context, transcript].concat();
        let ours: &[u8] = b"Exported Authenticator\0";
        let server = forgery
            .session
            .client
            .transcript(Role::Server, &[&asked, &certificate]);
        let other_request = message::request(&[8; 32]);
        let variants = [
            (
                "TLS 1.3's own context",
                content(b"TLS 1.3, client CertificateVerify\0", &right),
            ),
            ("no separator", content(&ours[..ours.len() - 1], &right)),
            ("no context", content(b"", &right)),
            ("no padding", [ours, &right].concat()),
            ("the transcript alone", right.clone()),
            (
                "no request",
                content(ours, &forgery.transcript(&[&certificate])),
            ),
            (
                "another request",
                content(ours, &forgery.transcript(&[&other_request, &certificate])),
            ),
            (
                "another certificate",
                content(ours, &forgery.transcript(&[&asked, &certificate[..50]])),
            ),
            (
                "the other role's handshake context",
                content(ours, server.as_ref()),
            ),
        ];
        for (what, content) in variants {
            let whole = forgery.whole(&certificate, &forgery.signed(&content));
            assert_eq!(
                forgery.refused(&whole, what),
                ProofError::Signature,
                "{what}"
            );
        }
    });
}

#[test]
fn a_finished_that_is_not_right_is_refused() {
    forge(|forgery| {
        let certificate = forgery.certificate();
        let verify = forgery.verify_for(&certificate);
        let mac = forgery.mac(&certificate, &verify);
        let asked = message::request(&GRANTED);
        let client = &forgery.session.client;
        let signed = |key: hmac::Key, parts: &[&[u8]], role| {
            let transcript = client.transcript(role, parts);
            hmac::sign(&key, transcript.as_ref()).as_ref().to_vec()
        };
        let key = |role| client.finished_key(role);
        let all: [&[u8]; 3] = [&asked, &certificate, &verify];
        let variants = [
            ("empty", Vec::new()),
            ("cut off", mac[..mac.len() - 1].to_vec()),
            ("longer", [&mac[..], &[0]].concat()),
            ("noughts", vec![0; mac.len()]),
            (
                "the server's key",
                signed(key(Role::Server), &all, Role::Client),
            ),
            (
                "the server's context",
                signed(key(Role::Client), &all, Role::Server),
            ),
            (
                "no request",
                signed(key(Role::Client), &all[1..], Role::Client),
            ),
            (
                "no CertificateVerify",
                signed(key(Role::Client), &all[..2], Role::Client),
            ),
        ];
        for (what, mac) in variants {
            let whole = [&certificate[..], &verify, &message::finished(&mac)].concat();
            assert_eq!(
                forgery.refused(&whole, what),
                ProofError::Finished,
                "{what}"
            );
        }
    });
}

#[test]
fn messages_missing_doubled_or_in_another_order_are_refused() {
    forge(|forgery| {
        let certificate = forgery.certificate();
        let verify = forgery.verify_for(&certificate);
        let finished = message::finished(&forgery.mac(&certificate, &verify));
        let (c, v, f) = (&certificate[..], &verify[..], &finished[..]);
        let request = message::request(&GRANTED);
        let variants: [(&str, Vec<&[u8]>); 14] = [
            ("nothing", vec![]),
            ("an empty authenticator", vec![f]),
            ("no Finished", vec![c, v]),
            ("no CertificateVerify", vec![c, f]),
            ("no Certificate", vec![v, f]),
            ("Finished first", vec![f, c, v]),
            ("CertificateVerify first", vec![v, c, f]),
            ("Finished in the middle", vec![c, f, v]),
            ("two Certificates", vec![c, c, v, f]),
            ("two CertificateVerifys", vec![c, v, v, f]),
            ("two Finisheds", vec![c, v, f, f]),
            ("the request in front", vec![&request, c, v, f]),
            ("the request alone", vec![&request]),
            ("an alert behind", vec![c, v, f, &[2, 40]]),
        ];
        for (what, messages) in variants {
            let error = forgery.refused(&messages.concat(), what);
            assert!(matches!(error, ProofError::Malformed(_)), "{what}: {error}");
        }
    });
}

#[test]
fn a_message_of_another_type_is_refused() {
    forge(|forgery| {
        let certificate = forgery.certificate();
        let verify = forgery.verify_for(&certificate);
        let whole = forgery.whole(&certificate, &verify);
        let finished_at = certificate.len() + verify.len();
        for at in [0, certificate.len(), finished_at] {
            for kind in (0..=u8::MAX).filter(|kind| *kind != whole[at]) {
                let mut other = whole.clone();
                other[at] = kind;
                let error = forgery.refused(&other, "a type");
                assert!(matches!(error, ProofError::Malformed(_)), "{kind}: {error}");
            }
        }
    });
}
