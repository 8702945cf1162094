//! The gates: eBPF programs of the datapath, attached to tc.
//!
//! `gate/` has one file a program; the other modules are what they share. A program first reads the
//! headers into its workspace ([`work::Work`]), then judges, then either lets the packet go on
//! (`TC_ACT_UNSPEC`: the next program decides too), drops it under a named reason, or holds it.
//! Everything outside the workspace fits the kernel's 512 bytes of stack.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod flow;
mod gate;
mod hold;
mod host;
mod maps;
mod policy;
mod proof;
mod report;
mod skb;
mod work;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lets only programs of a compatible licence call the helpers used here.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
