//! What a loaded program costs the verifier: instructions that it looked at, and bytes of stack.

use std::{collections::BTreeMap, os::fd::RawFd};

/// The kernel's limit (MAX_BPF_STACK), over all functions that are active at once.
pub const STACK: u32 = 512;

/// An instruction as the kernel has it (linux/bpf.h, `struct bpf_insn`).
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    dst: usize,
    src: usize,
    offset: i32,
    immediate: i32,
}

/// Bytes of stack on the deepest path of calls, as the verifier counts them: each function's lowest address
/// below its frame, rounded up to 32. The kernel tells it in its log only, which the loader does not keep.
pub fn stack_depth(program: RawFd) -> u32 {
    let program = translated(program);
    let mut starts = vec![0];
    starts.extend((0..program.len()).filter_map(|at| callee(&program, at)));
    starts.sort_unstable();
    starts.dedup();
    let mut functions = BTreeMap::new();
    for (index, start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(program.len());
        let calls = (*start..end).filter_map(|at| callee(&program, at));
        let own = frame(&program[*start..end]).max(1).next_multiple_of(32);
        functions.insert(*start, (own, calls.collect::<Vec<_>>()));
    }
    deepest(&functions, 0, 0)
}

fn deepest(functions: &BTreeMap<usize, (u32, Vec<usize>)>, at: usize, level: usize) -> u32 {
    assert!(level < 8, "the kernel allows eight frames");
    let (own, calls) = &functions[&at];
    let below = calls.iter().map(|at| deepest(functions, *at, level + 1));
    own + below.max().unwrap_or(0)
}

/// The function that is called here, if one is. The kernel keeps the distance in the offset once the program is
/// compiled for the machine.
fn callee(program: &[Instruction], at: usize) -> Option<usize> {
    const CALL: u8 = 0x85;
    const OF_THIS_PROGRAM: usize = 1;
    let call = program[at];
    let calls = call.code == CALL && call.src == OF_THIS_PROGRAM;
    calls.then(|| usize::try_from(at as i64 + 1 + i64::from(call.offset)).unwrap())
}

/// The lowest address below the frame pointer that a function names, in bytes: accesses by the frame pointer,
/// and pointers made of it.
fn frame(function: &[Instruction]) -> u32 {
    const FRAME: usize = 10;
    const MOVE: u8 = 0xbf;
    const ADD: u8 = 0x07;
    let mut pointers = [None; 11];
    pointers[FRAME] = Some(0);
    let mut lowest = 0;
    for instruction in function {
        let Instruction {
            code,
            dst,
            src,
            offset,
            immediate,
        } = *instruction;
        match code & 7 {
            // Load, and store of a constant or register.
            1 => {
                lowest = pointers[src].map_or(lowest, |at: i32| lowest.min(at + offset));
                pointers[dst] = None;
            }
            2 | 3 => lowest = pointers[dst].map_or(lowest, |at| lowest.min(at + offset)),
            _ if code == MOVE => pointers[dst] = pointers[src],
            _ if code == ADD => {
                pointers[dst] = pointers[dst].map(|at| at + immediate);
                lowest = pointers[dst].map_or(lowest, |at| lowest.min(at));
            }
            4 | 7 | 0 => pointers[dst] = None,
            _ => {}
        }
        pointers[FRAME] = Some(0);
    }
    lowest.unsigned_abs()
}

/// The program as the kernel runs it (BPF_OBJ_GET_INFO_BY_FD; root sees it).
fn translated(program: RawFd) -> Vec<Instruction> {
    const INFO: libc::c_long = 15;
    /// `struct bpf_prog_info` up to what is asked for.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        jited_length: u32,
        translated_length: u32,
        jited: u64,
        translated: u64,
    }
    #[repr(C)]
    struct Attributes {
        program: u32,
        length: u32,
        info: u64,
    }
    let ask = |info: &mut Info| {
        let mut attributes = Attributes {
            program: program as u32,
            length: size_of::<Info>() as u32,
            info: (&raw mut *info) as u64,
        };
        // SAFETY: both structures are live, and as long as they say.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                INFO,
                &raw mut attributes,
                size_of::<Attributes>(),
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    };
    let mut info = Info::default();
    ask(&mut info);
    let mut bytes = vec![0u8; info.translated_length as usize];
    info = Info {
        translated_length: bytes.len() as u32,
        translated: bytes.as_mut_ptr() as u64,
        ..Info::default()
    };
    ask(&mut info);
    let instructions = bytes.chunks_exact(8).map(|raw| Instruction {
        code: raw[0],
        dst: usize::from(raw[1] & 15).min(10),
        src: usize::from(raw[1] >> 4).min(10),
        offset: i32::from(i16::from_ne_bytes([raw[2], raw[3]])),
        immediate: i32::from_ne_bytes([raw[4], raw[5], raw[6], raw[7]]),
    });
    instructions.collect()
}
