//! SipHash (Aumasson and Bernstein, 2012) of whole words, as the kernel's verifier takes it.

/// SipHash-`C`-`D`: `C` rounds a word, `D` at the end, of little-endian `words` under `key`.
#[inline(always)]
pub const fn siphash<const C: u32, const D: u32, const N: usize>(
    key: [u64; 2],
    words: &[u64; N],
) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let mut i = 0;
    while i < N {
        v = absorb::<C>(v, words[i]);
        i += 1;
    }
    let length = ((N as u64 * 8) & 0xff) << 56;
    v = absorb::<C>(v, length);
    v[2] ^= 0xff;
    let [a, b, c, d] = rounds::<D>(v);
    a ^ b ^ c ^ d
}

#[inline(always)]
const fn absorb<const C: u32>(mut v: [u64; 4], word: u64) -> [u64; 4] {
    v[3] ^= word;
    v = rounds::<C>(v);
    v[0] ^= word;
    v
}

#[inline(always)]
const fn rounds<const ROUNDS: u32>(mut v: [u64; 4]) -> [u64; 4] {
    let mut i = 0;
    while i < ROUNDS {
        v[0] = v[0].wrapping_add(v[1]);
        v[2] = v[2].wrapping_add(v[3]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[3] = v[3].rotate_left(16) ^ v[2];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[1]);
        v[0] = v[0].wrapping_add(v[3]);
        v[1] = v[1].rotate_left(17) ^ v[2];
        v[3] = v[3].rotate_left(21) ^ v[0];
        v[2] = v[2].rotate_left(32);
        i += 1;
    }
    v
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::hash::Hasher;
    use proptest::prelude::*;
    use siphasher::sip::{SipHasher13, SipHasher24};

    fn reference(mut hasher: impl Hasher, words: &[u64]) -> u64 {
        for word in words {
            hasher.write(&word.to_le_bytes());
        }
        hasher.finish()
    }

    proptest! {
        #[test]
        fn it_is_siphash(key in any::<[u64; 2]>(), words in any::<[u64; 5]>()) {
            let [a, b] = key;
            let fast = reference(SipHasher13::new_with_keys(a, b), &words);
            prop_assert_eq!(siphash::<1, 3, 5>(key, &words), fast);
            let strong = reference(SipHasher24::new_with_keys(a, b), &words);
            prop_assert_eq!(siphash::<2, 4, 5>(key, &words), strong);
        }
    }
}
