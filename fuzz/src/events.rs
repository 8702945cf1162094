//! Records of the gates' ring buffer: whatever stands there is an event that says what its bytes say, or none.

use handfast_bpf::Event;

/// Where hook and protocol stand, and where local address and port do.
const HOOK: usize = 11;
const PROTOCOL: usize = 13;
const LOCAL_PORT: usize = 14;

pub fn run(data: &[u8]) {
    let Some(event) = Event::parse(data) else {
        return;
    };
    assert_eq!(event.hook as u8, data[HOOK]);
    assert_eq!(event.protocol, data[PROTOCOL]);
    let port = [data[LOCAL_PORT], data[LOCAL_PORT + 1]];
    assert_eq!(event.local.1.to_be_bytes(), port);
    // What stands behind a record is none of it; what is missing makes it none.
    let longer = [data, &[0xff; 8]].concat();
    assert_eq!(Event::parse(&longer), Some(event));
    assert_eq!(Event::parse(&data[..LOCAL_PORT]), None);
}

pub fn seeds() -> Vec<Vec<u8>> {
    let record = |reason: u8, kind: u8, hook: u8| {
        let head = [&7_u64.to_ne_bytes()[..], &[reason, 0, kind, hook, 1, 6]].concat();
        let ports = [0x9c, 0x40, 0, 80, 0, 0];
        let numbers = [1_u32, 5, 6, 1, 9, 1500, 3].map(u32::to_ne_bytes).concat();
        let address = |last| {
            let mut address = [0; 16];
            address[10..].copy_from_slice(&[0xff, 0xff, 10, 77, 1, last]);
            address
        };
        [&head[..], &ports, &numbers, &address(2), &address(3)].concat()
    };
    (1..=9)
        .map(|number| record(number, 1 + number % 3, number))
        .collect()
}
