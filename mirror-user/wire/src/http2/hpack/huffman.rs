//! The Huffman code of RFC 7541, appendix B. It is canonical: codes of one length follow each other in the
//! order of their symbols, so that the lengths say it all.

/// The symbol that ends a string, and never stands in one.
const END: usize = 256;

const LONGEST: usize = 30;

/// How many bits each symbol takes.
#[rustfmt::skip]
const LENGTHS: [u8; END + 1] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28,  6, 10, 10, 12, 13,  6,  8, 11, 10, 10,  8, 11,  8,  6,  6,  6,
     5,  5,  5,  6,  6,  6,  6,  6,  6,  6,  7,  8, 15,  6, 12, 10, 13,  6,  7,  7,  7,  7,  7,  7,
     7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  8,  7,  8, 13, 19, 13, 14,  6,
    15,  5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,  6,  7,  6,  5,  5,  6,  7,  7,
     7,  7,  7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// The symbols in the order of their codes, and where each length's begin.
struct Codes {
    symbols: [u16; END + 1],
    /// By length: the first code, and the place of its symbol.
    firsts: [(u32, usize); LONGEST + 2],
}

const CODES: Codes = {
    let mut codes = Codes {
        symbols: [0; END + 1],
        firsts: [(0, 0); LONGEST + 2],
    };
    let (mut length, mut code, mut place) = (1, 0, 0);
    while length <= LONGEST {
        codes.firsts[length] = (code, place);
        let mut symbol = 0;
        while symbol <= END {
            if LENGTHS[symbol] as usize == length {
                codes.symbols[place] = symbol as u16;
                code += 1;
                place += 1;
            }
            symbol += 1;
        }
        code <<= 1;
        length += 1;
    }
    codes.firsts[LONGEST + 1] = (code, place);
    codes
};

/// The symbol that `bits` begins with, left-aligned, and how many of them are its own. The code is complete:
/// there always is one.
fn symbol(bits: u32) -> (usize, usize) {
    let mut length = 5;
    while length < LONGEST {
        let (first, place) = CODES.firsts[length];
        let count = CODES.firsts[length + 1].1 - place;
        let offset = (bits >> (32 - length)) - first;
        if (offset as usize) < count {
            return (CODES.symbols[place + offset as usize] as usize, length);
        }
        length += 1;
    }
    let (first, place) = CODES.firsts[LONGEST];
    let offset = (bits >> (32 - LONGEST)) - first;
    (CODES.symbols[place + offset as usize] as usize, LONGEST)
}

/// Decodes a string; nothing where it has the end's symbol in it, or ends otherwise than with fewer than eight
/// bits of that (section 5.2).
pub(super) fn decode(coded: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(coded.len() * 8 / 5);
    let mut rest = coded.iter();
    let (mut bits, mut count) = (0_u64, 0_usize);
    loop {
        while count <= 32
            && let Some(&byte) = rest.next()
        {
            bits |= u64::from(byte) << (56 - count);
            count += 8;
        }
        // What is missing of a symbol would be the end's ones.
        let window = (bits >> 32) as u32 | u32::MAX.checked_shr(count as u32).unwrap_or(0);
        let (symbol, length) = symbol(window);
        if length > count || symbol == END {
            let is_padding = count < 8 && window == u32::MAX;
            decoded.shrink_to_fit();
            return is_padding.then_some(decoded);
        }
        decoded.push(symbol as u8);
        bits <<= length;
        count -= length;
    }
}

#[cfg(test)]
pub(super) fn encode(text: &[u8]) -> Vec<u8> {
    let mut coded = Vec::new();
    let (mut bits, mut count) = (0_u64, 0);
    for &byte in text {
        let length = usize::from(LENGTHS[usize::from(byte)]);
        let (first, place) = CODES.firsts[length];
        let symbols = &CODES.symbols[place..];
        let offset = symbols.iter().position(|&symbol| symbol == u16::from(byte));
        let code = u64::from(first) + offset.unwrap() as u64;
        bits = bits << length | code;
        count += length;
        while count >= 8 {
            count -= 8;
            coded.push((bits >> count) as u8);
        }
    }
    if count > 0 {
        coded.push((bits << (8 - count)) as u8 | u8::MAX >> count);
    }
    coded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_code_is_complete() {
        let sum: u64 = LENGTHS
            .iter()
            .map(|&length| 1 << (LONGEST as u8 - length))
            .sum();
        assert_eq!(sum, 1 << LONGEST);
    }

    #[test]
    fn what_the_rfc_shows() {
        // Appendices C.4 and C.6.
        for (text, coded) in [
            (
                &b"www.example.com"[..],
                &[
                    0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
                ][..],
            ),
            (b"no-cache", &[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]),
            (
                b"custom-value",
                &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf],
            ),
            (b"302", &[0x64, 0x02]),
            (b"", &[]),
        ] {
            assert_eq!(decode(coded).as_deref(), Some(text));
            assert_eq!(encode(text), coded);
        }
    }

    #[test]
    fn what_is_no_string() {
        // Eight bits of padding; padding that is not of ones; the end's symbol.
        for coded in [
            &[0x64, 0x02, 0xff][..],
            &[0x64, 0x02, 0x00],
            &[0x1e],
            &[0xff; 4],
            &[0xff],
        ] {
            assert_eq!(decode(coded), None, "{coded:x?}");
        }
    }

    proptest! {
        #[test]
        fn strings_survive(text in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(decode(&encode(&text)), Some(text));
        }

        #[test]
        fn what_is_decoded_was_encoded_so(coded in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Some(text) = decode(&coded) {
                prop_assert_eq!(encode(&text), coded);
            }
        }
    }
}
