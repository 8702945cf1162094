//! What a nanosecond is: time, or an instruction, in a guest whose emulator counts them (`scripts/kernels/bench.sh`).

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Turns of the loop that the clock is checked by; two instructions each.
const TURNS: u64 = 10_000_000;
/// How often it is looked whether the machine has come to rest, a second apart.
const TRIES: u32 = 30;

/// What measures time here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// A machine's.
    Real,
    /// An emulator's, by which ciphers are much dearer than on a machine, and everything else alike.
    Emulated,
    /// An emulator's that counts: each instruction is a nanosecond.
    Instructions,
}

impl Clock {
    /// As whoever started this says.
    ///
    /// # Errors
    ///
    /// If instructions are to be counted, and are not.
    pub fn here() -> Result<Self> {
        match std::env::var("HANDFAST_CLOCK").as_deref() {
            Ok("emulated") => Ok(Self::Emulated),
            Ok("instructions") => counts().map(|()| Self::Instructions),
            _ => Ok(Self::Real),
        }
    }
}

fn counts() -> Result<()> {
    // Beside it the kernel has its own work: its timer, and for a while after a start the tests of its ciphers.
    let mut each = 0.0;
    for _ in 0..TRIES {
        let start = Instant::now();
        spin(TURNS);
        each = start.elapsed().as_nanos() as f64 / (2 * TURNS) as f64;
        if (0.98..1.02).contains(&each) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    bail!("the clock of this machine does not count instructions: one takes {each:.3} ns")
}

/// Two instructions for each turn.
#[cfg(target_arch = "x86_64")]
fn spin(turns: u64) {
    // SAFETY: it counts a register down, and touches neither memory nor stack.
    unsafe {
        std::arch::asm!(
            "2:",
            "dec {turns}",
            "jnz 2b",
            turns = inout(reg) turns => _,
            options(nomem, nostack),
        );
    }
}

/// The guests are of another architecture.
#[cfg(not(target_arch = "x86_64"))]
fn spin(_turns: u64) {}
