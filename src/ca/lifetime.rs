//! `--lifetime WHAT=TIME`: how long what the CA signs lives.

use std::time::Duration;

use clap::Args;
use handfast_ca::authority::{Lifetime, Lifetimes};

/// The option of whatever decides how long things live.
#[derive(Debug, Args)]
pub struct LifetimeArgs {
    /// How long what is signed lives; usual are root=3650d, issuing=90d, jwt-key=30d, node=24h, proof=24h, workload=1h
    /// and jwt=5m; again for more
    #[arg(long = "lifetime", value_name = "WHAT=TIME", value_parser = setting)]
    settings: Vec<(Lifetime, Duration)>,
}

impl LifetimeArgs {
    /// What is set, in seconds.
    pub fn seconds(&self) -> Vec<(Lifetime, u64)> {
        let seconds = |(what, time): &(Lifetime, Duration)| (*what, time.as_secs());
        self.settings.iter().map(seconds).collect()
    }
}

fn setting(text: &str) -> Result<(Lifetime, Duration), String> {
    let (what, time) = text
        .split_once('=')
        .ok_or("write WHAT=TIME, such as workload=30m")?;
    let what: Lifetime = what
        .parse()
        .map_err(|error: handfast_ca::Error| error.to_string())?;
    let time = humantime::parse_duration(time).map_err(|error| error.to_string())?;
    Lifetimes::default()
        .set(what, time.as_secs())
        .map_err(|error| error.to_string())?;
    Ok((what, time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_names_what_lives_so_long() {
        let (what, time) = setting("jwt-key=14d").unwrap();
        assert_eq!((what, time.as_secs()), (Lifetime::JwtKey, 14 * 24 * 3600));
        for (bad, words) in [
            ("workload", "WHAT=TIME"),
            ("svid=1h", "jwt-key"),
            ("workload=long", "number"),
            ("workload=1s", "from 1m to 1d"),
            ("root=100000d", "from 1h to"),
        ] {
            let error = setting(bad).unwrap_err();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }
}
