//! Internet checksums (RFC 1071) that follow a change, without a look at what stayed (RFC 1624).
//!
//! Words and checksum fields are taken as they lie in memory: the sum does not care for their order.

/// What replacing `from` by `to` adds to a ones' complement sum. Several changes add up by [`add`].
#[inline(always)]
pub const fn difference<const N: usize>(from: [u32; N], to: [u32; N]) -> u32 {
    let mut sum = 0;
    let mut i = 0;
    while i < N {
        sum = add(add(sum, to[i]), !from[i]);
        i += 1;
    }
    sum
}

/// The sum of two ones' complement numbers.
#[inline(always)]
pub const fn add(a: u32, b: u32) -> u32 {
    let sum = a as u64 + b as u64;
    // Cannot carry again.
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

/// A checksum after a change: equation 3 of RFC 1624.
#[inline(always)]
pub const fn updated(checksum: [u8; 2], difference: u32) -> [u8; 2] {
    let sum = add(!u16::from_ne_bytes(checksum) as u32 & 0xffff, difference);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!sum as u16).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, section 1, over whole words.
    fn checksum(words: &[u32]) -> u16 {
        let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
        let bytes: std::vec::Vec<u8> = bytes.collect();
        let pairs = bytes
            .chunks(2)
            .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1]));
        let mut sum: u64 = pairs.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn a_change_is_followed(before in any::<[u32; 5]>(), after in any::<[u32; 3]>()) {
            let [a, b, c, rest @ ..] = before;
            let changed: std::vec::Vec<u32> = after.iter().chain(&rest).copied().collect();
            let difference = difference([a, b, c], after);
            let found = updated(checksum(&before).to_be_bytes(), difference);
            // Both zeros are right (RFC 1624, section 3); the sum over everything tells neither apart.
            let equal = |checksum: u16| checksum % 0xffff;
            prop_assert_eq!(equal(u16::from_be_bytes(found)), equal(checksum(&changed)));
        }
    }
}
