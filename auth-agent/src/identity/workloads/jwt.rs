//! JWT-SVIDs: fetched when a workload asks, and given out again for the first half of their life.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use handfast_ca::client::IssuedJwt;
use tokio::time::timeout;

use crate::identity::Link;
use crate::identity::turns::Turns;
use crate::workload_api::JwtError;

/// JWT-SVIDs that are remembered.
const MAX_TOKENS: usize = 4096;
/// Of one entry.
const MAX_TOKENS_EACH: usize = 64;
/// Tokens that the CA is asked for at once, in all and for one entry: who asks for ever other audiences waits for
/// himself.
const CALLS: usize = 32;
const CALLS_EACH: usize = 4;
/// A workload does not wait longer for the CA.
const PATIENCE: Duration = Duration::from_secs(5);
/// Seconds that one must live on to be given out when the CA is away.
const LAST_LIFE: u64 = 10;

/// For which entry and audiences.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    entry: Arc<str>,
    audiences: Vec<String>,
}

/// One place a key: who asks for the same at once waits for one answer.
type Place = Arc<tokio::sync::Mutex<Option<Token>>>;

/// A JWT-SVID as it came, and the key that signed it.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) jwt: IssuedJwt,
    pub(super) key_id: Arc<str>,
}

/// What is remembered.
#[derive(Debug)]
pub(super) struct Jwts {
    places: Mutex<HashMap<Key, Place>>,
    turns: Turns,
}

impl Default for Jwts {
    fn default() -> Self {
        Self {
            places: Mutex::default(),
            turns: Turns::new(CALLS, CALLS_EACH),
        }
    }
}

impl Jwts {
    /// A JWT-SVID of an entry's identity. `good` says whether a signer may still be used.
    pub(super) async fn fetch(
        &self,
        link: &Link,
        entry: Arc<str>,
        audiences: Vec<String>,
        now: u64,
        good: impl Fn(&str) -> bool,
    ) -> Result<IssuedJwt, JwtError> {
        let mut sorted = audiences.clone();
        sorted.sort();
        sorted.dedup();
        let place = self.place(Key {
            entry: Arc::clone(&entry),
            audiences: sorted,
        });
        let mut place = place.lock().await;
        let known = place.clone().filter(|token| good(&token.key_id));
        if let Some(token) = &known
            && now < token.jwt.issued_at.midpoint(token.jwt.not_after)
        {
            return Ok(token.jwt.clone());
        }
        let asking = async {
            let _turn = self.turns.next(&entry).await;
            link.issue_jwt(&entry, audiences).await
        };
        let answer = timeout(PATIENCE, asking).await;
        let problem = match answer {
            Ok(Ok(Ok(jwt))) => {
                let key_id = key_id(&jwt.token).unwrap_or_default().into();
                *place = Some(Token {
                    jwt: jwt.clone(),
                    key_id,
                });
                return Ok(jwt);
            }
            Ok(Ok(Err(refusal))) => {
                *place = None;
                return Err(refused(&refusal));
            }
            Ok(Err(away)) => away.reason,
            Err(_) => "the CA does not answer".to_owned(),
        };
        match known {
            Some(token) if now + LAST_LIFE < token.jwt.not_after => Ok(token.jwt),
            _ => Err(JwtError::Unavailable(problem)),
        }
    }

    fn place(&self, key: Key) -> Place {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if !places.contains_key(&key) {
            // Who asks for ever other audiences drives nobody's tokens out but his own.
            let own = places
                .keys()
                .filter(|other| other.entry == key.entry)
                .count();
            if own >= MAX_TOKENS_EACH || places.len() >= MAX_TOKENS {
                places.retain(|other, _| other.entry != key.entry);
            }
            if places.len() >= MAX_TOKENS {
                places.clear();
            }
        }
        Arc::clone(places.entry(key).or_default())
    }

    /// Drops those that are over, and those that `keep` does not want (by their entry).
    pub(super) fn retain(&self, now: u64, keep: impl Fn(&Arc<str>, &Token) -> bool) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|key, place| match place.try_lock() {
            Ok(token) => token
                .as_ref()
                .is_some_and(|token| now < token.jwt.not_after && keep(&key.entry, token)),
            // Being fetched.
            Err(_) => true,
        });
    }

    /// Which keys signed what is remembered.
    pub(super) fn key_ids(&self) -> Vec<Arc<str>> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places
            .values()
            .filter_map(|place| {
                place
                    .try_lock()
                    .ok()?
                    .as_ref()
                    .map(|t| Arc::clone(&t.key_id))
            })
            .filter(|key_id| !key_id.is_empty())
            .collect()
    }
}

fn refused(refusal: &handfast_ca::client::Refusal) -> JwtError {
    use tonic::Code;
    match refusal.code {
        Code::PermissionDenied | Code::NotFound => JwtError::NotEntitled,
        Code::InvalidArgument => JwtError::Invalid(refusal.message.clone()),
        _ => JwtError::Unavailable(refusal.message.clone()),
    }
}

/// The `kid` of a token that came from our CA.
fn key_id(token: &str) -> Option<String> {
    let header = token.split('.').next()?;
    let header = BASE64URL_NOPAD.decode(header.as_bytes()).ok()?;
    let header: serde_json::Value = serde_json::from_slice(&header).ok()?;
    Some(header.get("kid")?.as_str()?.to_owned())
}
