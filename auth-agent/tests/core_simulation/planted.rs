//! Every planted bug is found, and soon: the simulator is not blind.

use handfast_agent::core::{Bug, plant};

use super::history;

/// Histories in which each must show.
const BOUND: u64 = 500;

fn found(bug: Bug) {
    plant(Some(bug));
    let failure = history::first_failure(1..=BOUND);
    plant(None);
    let Some((seed, why)) = failure else {
        panic!("{bug:?}: not found in {BOUND} histories");
    };
    println!("{bug:?}: seed {seed}: {why}");
    // Without the bug the same history ends well.
    assert_eq!(history::outcome(seed, false), Ok(()), "{bug:?}");
}

#[test]
fn an_address_that_is_free_before_its_withdrawal_is_confirmed_is_found() {
    found(Bug::WithdrawalAckSkipped);
}

#[test]
fn a_proof_of_another_session_that_is_accepted_is_found() {
    found(Bug::ForeignSessionAccepted);
}

#[test]
fn a_signature_checked_with_the_last_certificate_is_found() {
    found(Bug::LastCertificateTaken);
}

#[test]
fn epochs_that_begin_anew_with_the_agent_are_found() {
    found(Bug::EpochIgnoredOnRestart);
}

#[test]
fn a_deny_list_that_a_restart_forgets_is_found() {
    found(Bug::DenyListForgottenOnResume);
}

#[test]
fn an_announced_foreign_prefix_that_is_trusted_is_found() {
    found(Bug::ForeignPrefixTrusted);
}

#[test]
fn an_interface_index_that_is_taken_for_an_endpoint_is_found() {
    found(Bug::InterfaceIndexReused);
}

#[test]
fn a_held_packet_that_outlives_its_address_is_found() {
    found(Bug::HeldPacketOutlivesItsAddress);
}

#[test]
fn there_is_a_test_for_every_bug() {
    assert_eq!(Bug::ALL.len(), 8);
}
