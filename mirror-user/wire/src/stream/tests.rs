use super::*;
use proptest::prelude::*;

/// A stream that starts at 0 and has taken these segments in.
fn stream(segments: &[(u32, &'static str)]) -> Stream {
    let mut stream = Stream::default();
    stream.anchor(BASE);
    for &(sequence, text) in segments {
        stream.insert(sequence, Some(7), 1, Bytes::from_static(text.as_bytes()));
    }
    stream
}

fn drain(stream: &mut Stream) -> String {
    let mut text = String::new();
    while let Some(piece) = stream.pop() {
        text.push_str(std::str::from_utf8(&piece.data).unwrap());
    }
    text
}

#[track_caller]
fn check(segments: &[(u32, &'static str)], shown: &str, out: &str) {
    let mut stream = stream(segments);
    assert_eq!(stream.to_string(), shown);
    let held: usize = stream.pieces().map(|piece| piece.data.len()).sum();
    assert_eq!(held, stream.buffered());
    assert_eq!(drain(&mut stream), out);
}

#[test]
fn in_order() {
    check(&[(0, "ab"), (2, "cd")], "0 [0..2) [2..4)", "abcd");
}

#[test]
fn reordered() {
    check(&[(2, "cd"), (0, "ab")], "0 [0..2) [2..4)", "abcd");
}

#[test]
fn hole() {
    check(&[(2, "cd")], "0 [2..4)", "");
}

#[test]
fn the_same_again() {
    check(&[(2, "cd"), (2, "XX")], "0 [2..4)", "");
    check(&[(0, "ab"), (0, "XX")], "0 [0..2)", "ab");
}

#[test]
fn inside_what_is_there() {
    check(&[(0, "abcd"), (1, "XX")], "0 [0..4)", "abcd");
}

#[test]
fn overlap_at_the_front() {
    check(&[(2, "cd"), (0, "abXX")], "0 [0..2) [2..4)", "abcd");
}

#[test]
fn overlap_at_the_back() {
    check(&[(0, "abc"), (2, "XdX")], "0 [0..3) [3..5)", "abcdX");
}

#[test]
fn around_what_is_there() {
    check(
        &[(2, "cd"), (0, "abXXef")],
        "0 [0..2) [2..4) [4..6)",
        "abcdef",
    );
}

#[test]
fn over_two_pieces_and_their_hole() {
    check(
        &[(1, "b"), (3, "d"), (0, "aXcXe")],
        "0 [0..1) [1..2) [2..3) [3..4) [4..5)",
        "abcde",
    );
}

#[test]
fn exactly_the_hole() {
    check(
        &[(0, "a"), (2, "c"), (1, "b")],
        "0 [0..1) [1..2) [2..3)",
        "abc",
    );
}

#[test]
fn what_was_handed_out_is_not_revised() {
    let mut stream = stream(&[(0, "abcd")]);
    assert_eq!(drain(&mut stream), "abcd");
    stream.insert(2, None, 2, Bytes::from_static(b"XXef"));
    assert_eq!(stream.to_string(), "4 [4..6)");
    assert_eq!(drain(&mut stream), "ef");
    // A keep-alive probe: one byte before the next.
    stream.insert(5, None, 2, Bytes::from_static(b"X"));
    assert_eq!(stream.to_string(), "6");
}

#[test]
fn sequence_numbers_wrap() {
    let mut stream = Stream::default();
    stream.anchor(BASE + u64::from(u32::MAX - 1));
    stream.insert(1, None, 0, Bytes::from_static(b"d"));
    stream.insert(u32::MAX - 1, None, 0, Bytes::from_static(b"abc"));
    stream.finish(2);
    assert_eq!(drain(&mut stream), "abcd");
    assert_eq!(stream.next(), BASE + (1 << 32) + 2);
    assert!(stream.is_ended());
}

#[test]
fn a_hole_given_up_is_counted_in_bytes() {
    let mut stream = stream(&[(3, "de"), (7, "h")]);
    let hole = stream.hole(None).unwrap();
    assert_eq!((hole.end - hole.start, stream.give_up(hole.end)), (3, 3));
    assert_eq!(drain(&mut stream), "de");
    // The lost bytes come too late.
    stream.insert(0, None, 0, Bytes::from_static(b"abc"));
    assert_eq!(stream.to_string(), "5 [7..8)");
    // Nothing beyond the first piece is given up.
    assert_eq!(stream.give_up(u64::MAX), 2);
    assert_eq!(drain(&mut stream), "h");
}

#[test]
fn a_lost_tail_is_a_hole_up_to_the_fin_or_the_acknowledgement() {
    let mut stream = stream(&[(0, "ab")]);
    drain(&mut stream);
    assert_eq!(stream.hole(None), None);
    assert_eq!(stream.hole(Some(BASE + 5)), Some(BASE + 2..BASE + 5));
    stream.finish(4);
    assert_eq!(stream.hole(Some(BASE + 5)), Some(BASE + 2..BASE + 4));
    stream.give_up(BASE + 4);
    assert!(stream.is_ended());
}

#[test]
fn nothing_follows_the_fin() {
    let mut stream = stream(&[(0, "ab")]);
    stream.finish(2);
    stream.insert(1, None, 0, Bytes::from_static(b"bX"));
    stream.finish(9);
    assert_eq!(stream.to_string(), "0 [0..2) fin 2");
    drain(&mut stream);
    assert!(stream.is_ended());
}

#[test]
fn a_stream_that_goes_on_past_a_false_fin_has_ended() {
    let mut stream = stream(&[]);
    stream.finish(4);
    stream.anchor(BASE + 6);
    stream.insert(2, None, 0, Bytes::from_static(b"cdefgh"));
    assert_eq!(stream.to_string(), "6 fin 4");
    assert!(stream.is_ended());
}

#[test]
fn joined_in_its_middle_it_hands_out_nothing_until_anchored() {
    let mut stream = Stream::default();
    stream.insert(1_000, Some(1), 0, Bytes::from_static(b"cd"));
    stream.insert(998, Some(1), 0, Bytes::from_static(b"ab"));
    assert_eq!(stream.pop(), None);
    assert_eq!(stream.hole(None), None);
    let before = stream.anchor(BASE + 999);
    assert_eq!(before[0].data, "a");
    assert_eq!(drain(&mut stream), "bcd");
}

#[test]
fn edges_are_those_of_segments() {
    let mut stream = stream(&[(2, "cd"), (0, "abXXef")]);
    let edges: Vec<_> = stream.pieces().map(|p| (p.starts, p.ends)).collect();
    assert_eq!(edges, [(true, false), (true, true), (false, true)]);
    assert!(stream.starting_at(BASE + 2).is_some());
    assert!(stream.starting_at(BASE + 4).is_none());
    let front = stream.discard(BASE + 3);
    assert_eq!(front.len(), 2);
    assert_eq!(stream.to_string(), "3 [3..4) [4..6)");
}

#[test]
fn far_segments_are_of_another_connection() {
    let mut stream = stream(&[(0x5000_0000, "x")]);
    assert_eq!(stream.buffered(), 0);
    stream.finish(0x6000_0000);
    assert!(!stream.is_finished());
}

proptest! {
    /// Whatever is cut out of a text and in whatever order, each byte comes out at its place.
    #[test]
    fn bytes_keep_their_place(
        start in any::<u32>(),
        cuts in prop::collection::vec((0_usize..300, 1_usize..60, any::<bool>()), 0..60),
    ) {
        let text: Vec<u8> = (0..400_u32).map(|i| (i * 7 + i / 256) as u8).collect();
        let mut stream = Stream::default();
        stream.anchor(BASE + u64::from(start));
        let origin = stream.next();
        for (from, length, give_up) in cuts {
            let data = Bytes::copy_from_slice(&text[from..from + length]);
            stream.insert(start.wrapping_add(from as u32), None, 0, data);
            if give_up && let Some(hole) = stream.hole(None) {
                stream.give_up(hole.end);
            }
            while let Some(piece) = stream.pop() {
                let at = (piece.position - origin) as usize;
                prop_assert_eq!(&piece.data[..], &text[at..at + piece.data.len()]);
            }
            let held: usize = stream.pieces().map(|piece| piece.data.len()).sum();
            prop_assert_eq!(held, stream.buffered());
        }
    }
}
