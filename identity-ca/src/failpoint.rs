//! Places where a test kills the process, as a power cut would: only in builds with the feature `failpoints`.

/// Dies here if `HANDFAST_DIE_AT` names this place.
#[cfg(feature = "failpoints")]
pub(crate) fn here(place: &str) {
    if std::env::var("HANDFAST_DIE_AT").is_ok_and(|wanted| wanted == place) {
        eprintln!("dying at {place}");
        let us = nix::unistd::Pid::this();
        let _ = nix::sys::signal::kill(us, nix::sys::signal::Signal::SIGKILL);
        // Until the signal is delivered nothing more may happen.
        loop {
            std::thread::park();
        }
    }
}

/// Nothing, in every build that is used.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn here(_: &str) {}
