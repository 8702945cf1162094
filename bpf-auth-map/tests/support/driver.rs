//! Runs a program many times in the kernel, each time on a packet of another flow.
//!
//! A test run repeats one packet. So a small program of our own stands in front: it chooses a flow, writes that
//! flow's port and address into the packet, sets the mark, and goes on to the gate by a tail call. What it costs
//! itself is measured alone and taken off.

use std::{io, os::fd::RawFd};

use super::run::{Came, test_run};

/// Ports that flows have before the next address is needed.
const PORTS: i32 = 50_000;
const FIRST_PORT: i32 = 1024;
/// Last bytes of the addresses that flows go to.
pub const PEERS: std::ops::Range<u8> = 100..200;

/// Which flow a packet belongs to.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// Any of the first so many.
    Random(u32),
    /// One after the other, from this one on.
    Each(u32),
}

/// Where in the packet the two things that make a flow stand.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// The last byte of the other side's address.
    pub address: u32,
    /// The endpoint's port.
    pub port: u32,
}

/// Nanoseconds of one packet: a program's own, with the driver and the kernel's loop taken off.
pub fn cost(
    program: RawFd,
    order: Order,
    places: Places,
    came: Came,
    frame: &[u8],
    packets: u32,
) -> io::Result<f64> {
    let alone = Driver::new(None, order, places, came.mark)?;
    let gate = Driver::new(Some(program), order, places, came.mark)?;
    let first = match order {
        Order::Random(_) => 0,
        Order::Each(first) => first,
    };
    let run = |driver: &Driver| {
        f64::from(test_run(driver.program, came.numbered(first), frame, packets).nanoseconds)
    };
    // Each half of it: the machine may be busier in the one than in the other.
    let before = run(&alone);
    let with = run(&gate);
    let after = run(&alone);
    Ok(with - before.min(after))
}

/// The program in front.
struct Driver {
    program: RawFd,
    gates: RawFd,
}

impl Driver {
    fn new(gate: Option<RawFd>, order: Order, places: Places, mark: u32) -> io::Result<Self> {
        let gates = array_of_programs()?;
        let mut driver = Self { program: -1, gates };
        if let Some(gate) = gate {
            enter(gates, gate)?;
        }
        driver.program = load(&code(order, places, mark, gates))?;
        Ok(driver)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        for fd in [self.program, self.gates] {
            if fd >= 0 {
                // SAFETY: the descriptor is ours, and nobody has it after us.
                unsafe { libc::close(fd) };
            }
        }
    }
}

/// `struct bpf_insn`.
fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let [o0, o1] = offset.to_le_bytes();
    let [i0, i1, i2, i3] = immediate.to_le_bytes();
    [code, src << 4 | dst, o0, o1, i0, i1, i2, i3]
}

fn code(order: Order, places: Places, mark: u32, gates: RawFd) -> Vec<[u8; 8]> {
    const MOVE: u8 = 0xbf;
    const MOVE_CONST: u8 = 0xb7;
    const ADD: u8 = 0x0f;
    const ADD_CONST: u8 = 0x07;
    const DIVIDE: u8 = 0x37;
    const MODULO: u8 = 0x97;
    const CALL: u8 = 0x85;
    const STORE_BYTE: u8 = 0x73;
    const STORE_HALF: u8 = 0x6b;
    const STORE_WORD: u8 = 0x63;
    const LOAD_WORD: u8 = 0x61;
    const BIG_ENDIAN: u8 = 0xdc;
    /// In `struct __sk_buff`.
    const MARK: i16 = 8;
    const PRIORITY: i16 = 32;
    const RANDOM: i32 = 7;
    const STORE_BYTES: i32 = 9;
    const TAIL_CALL: i32 = 12;

    let mut code = vec![instruction(MOVE, 6, 1, 0, 0)];
    match order {
        Order::Random(flows) => code.extend([
            instruction(CALL, 0, 0, 0, RANDOM),
            instruction(MODULO, 0, 0, 0, flows as i32),
        ]),
        // The kernel keeps it from one repetition to the next.
        Order::Each(_) => code.extend([
            instruction(LOAD_WORD, 0, 6, PRIORITY, 0),
            instruction(MOVE, 1, 0, 0, 0),
            instruction(ADD_CONST, 1, 0, 0, 1),
            instruction(STORE_WORD, 6, 1, PRIORITY, 0),
        ]),
    }
    code.extend([
        instruction(MOVE, 1, 0, 0, 0),
        instruction(MODULO, 0, 0, 0, PORTS),
        instruction(DIVIDE, 1, 0, 0, PORTS),
        instruction(ADD, 1, 0, 0, 0),
        instruction(MODULO, 1, 0, 0, i32::from(PEERS.end - PEERS.start)),
        instruction(ADD_CONST, 1, 0, 0, i32::from(PEERS.start)),
        instruction(STORE_BYTE, 10, 1, -4, 0),
        instruction(ADD_CONST, 0, 0, 0, FIRST_PORT),
        instruction(BIG_ENDIAN, 0, 0, 0, 16),
        instruction(STORE_HALF, 10, 0, -2, 0),
    ]);
    for (at, from, length) in [(places.address, -4, 1), (places.port, -2, 2)] {
        code.extend([
            instruction(MOVE, 1, 6, 0, 0),
            instruction(MOVE_CONST, 2, 0, 0, at as i32),
            instruction(MOVE, 3, 10, 0, 0),
            instruction(ADD_CONST, 3, 0, 0, from),
            instruction(MOVE_CONST, 4, 0, 0, length),
            instruction(MOVE_CONST, 5, 0, 0, 0),
            instruction(CALL, 0, 0, 0, STORE_BYTES),
        ]);
    }
    code.extend([
        instruction(MOVE_CONST, 1, 0, 0, mark as i32),
        instruction(STORE_WORD, 6, 1, MARK, 0),
        instruction(MOVE, 1, 6, 0, 0),
        // The map's descriptor, in two halves (BPF_PSEUDO_MAP_FD).
        instruction(0x18, 2, 1, 0, gates),
        instruction(0, 0, 0, 0, 0),
        instruction(MOVE_CONST, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, TAIL_CALL),
        instruction(MOVE_CONST, 0, 0, 0, 0),
        instruction(0x95, 0, 0, 0, 0),
    ]);
    code
}

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;

fn array_of_programs() -> io::Result<RawFd> {
    const PROG_ARRAY: u32 = 3;
    // Type, key, value, entries.
    bpf(MAP_CREATE, &mut [PROG_ARRAY, 4, 4, 1])
}

fn enter(array: RawFd, program: RawFd) -> io::Result<()> {
    let (key, value) = (0u32, program as u32);
    let mut attributes = [
        array as u64,
        (&raw const key) as u64,
        (&raw const value) as u64,
        0,
    ];
    bpf(MAP_UPDATE, &mut attributes).map(drop)
}

fn load(code: &[[u8; 8]]) -> io::Result<RawFd> {
    const SCHED_CLS: u64 = 3;
    // Type and count; instructions; licence.
    let mut attributes = [0u64; 16];
    attributes[0] = SCHED_CLS | (code.len() as u64) << 32;
    attributes[1] = code.as_ptr() as u64;
    attributes[2] = c"GPL".as_ptr() as u64;
    bpf(PROG_LOAD, &mut attributes)
}

/// bpf(2): a descriptor, or 0.
fn bpf<T>(command: libc::c_long, attributes: &mut [T]) -> io::Result<RawFd> {
    // SAFETY: what the attributes point to lives in the callers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            size_of_val(attributes),
        )
    };
    match result {
        ..0 => Err(io::Error::last_os_error()),
        fd => Ok(fd as RawFd),
    }
}
