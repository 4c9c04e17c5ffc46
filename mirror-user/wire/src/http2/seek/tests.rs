use super::*;

const CLIENT: Direction = Direction::Request;

fn seek() -> (Seek, Memory) {
    let memory = Memory::new(1 << 20);
    (Seek::new(CLIENT, &memory), memory)
}

/// A frame with its header.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream];
    frame.extend(payload);
    frame
}

/// A request: `:method: POST`, and three fields of before.
fn ask(stream: u8) -> Vec<u8> {
    frame(1, 0x4, stream, &[0x83, 0xbe, 0xbf, 0xc0])
}

fn data(stream: u8, payload: &[u8]) -> Vec<u8> {
    frame(0, 0x1, stream, payload)
}

#[test]
fn frames_are_found_from_the_third_that_begins_with_a_segment() {
    let (mut seek, memory) = seek();
    assert!(
        seek.feed(Bytes::from_static(b"the rest of a body"), 1, true)
            .is_none()
    );
    assert!(
        seek.feed([ask(5), data(5, b"a")].concat().into(), 2, true)
            .is_none()
    );
    let ping = frame(6, 0, 0, b"12345678");
    assert!(seek.feed(ping.clone().into(), 3, true).is_none());
    assert!(seek.feed(ask(7).into(), 4, false).is_none());
    let last = data(7, b"b");
    // The piece's rest comes with it.
    let found = seek.feed([&ask(9)[..], &last].concat().into(), 5, true);
    let found: Vec<_> = found
        .unwrap()
        .into_iter()
        .filter(|(_, data)| !data.is_empty())
        .collect();
    assert_eq!(found, [(5, Bytes::from([&ask(9)[..], &last].concat()))]);
    drop(seek);
    assert_eq!(memory.used(), 0);
}

#[test]
fn frames_that_begin_nowhere_are_found_by_their_number() {
    let (mut seek, _) = seek();
    let mut fed = 0;
    for stream in (1..255).step_by(2).cycle() {
        let call = [ask(stream), data(stream, &[stream; 200])].concat();
        fed += call.len();
        if let Some(found) = seek.feed(call.into(), 1, false) {
            let found: usize = found.iter().map(|(_, data)| data.len()).sum();
            assert!(
                (16_384..20_000).contains(&fed) && found < 300,
                "{found} of {fed}"
            );
            return;
        }
        assert!(fed < 100_000, "not found");
    }
}

#[test]
fn what_was_found_before_a_loss_leads_nowhere() {
    let (mut seek, memory) = seek();
    for _ in 0..2 {
        assert!(seek.feed(ask(5).into(), 1, true).is_none());
    }
    seek.restart();
    assert_eq!(memory.used(), 0);
    for _ in 0..2 {
        assert!(seek.feed(ask(5).into(), 1, true).is_none());
    }
}

/// Bytes that look like much, and are no frames: none are found, in bounded time and memory.
#[test]
fn what_is_no_frame() {
    let mut state = 1_u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let noise: Vec<u8> = (0..1 << 16).map(|_| random() as u8).collect();
    let numbers = |big: bool| -> Vec<u8> {
        let small = (0_u32..1 << 14).map(|at| at * 7 % 11);
        small
            .flat_map(|number| {
                if big {
                    number.to_be_bytes()
                } else {
                    number.to_le_bytes()
                }
            })
            .collect()
    };
    let floats: Vec<u8> = (0..1 << 14)
        .flat_map(|at| (at as f32 / 3.).to_le_bytes())
        .collect();
    // A frame a byte: each would be followed by one if it were not so close to it.
    let headers = [0, 0, 1, 1, 4, 0, 0, 0, 1].repeat(1 << 12);
    let waiting = [0, 0x40, 0, 1, 4, 0, 0, 0, 1].repeat(1 << 12);
    let huge = [0, 0xff, 0xff, 0, 1, 0, 0, 0, 1].repeat(1 << 12);
    let kinds = [
        noise,
        vec![0; 1 << 16],
        vec![1; 1 << 16],
        numbers(true),
        numbers(false),
        floats,
        headers,
        waiting,
        huge,
    ];
    for (number, bytes) in kinds.into_iter().enumerate() {
        let (mut seek, memory) = seek();
        let began = std::time::Instant::now();
        for _ in 0..4 {
            for part in bytes.chunks(1_448) {
                let found = seek.feed(Bytes::copy_from_slice(part), 1, true);
                assert!(found.is_none(), "kind {number}");
                assert!(memory.used() <= 2 * MAX_HELD);
            }
        }
        assert!(
            began.elapsed().as_secs() < 5,
            "kind {number} took {:?}",
            began.elapsed()
        );
    }
}
