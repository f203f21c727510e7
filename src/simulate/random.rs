//! Numbers that look drawn and are derived: one stream for each (seed, person, purpose).
//!
//! *Promises* that a stream depends on its three names alone, so that a new kind of event shifts nobody's salary, and
//! that it gives the same numbers on every machine and in every release: integers only, a generator written out here,
//! no `libm`.

/// A stream of numbers for one purpose in one person's life (xoshiro256++ on a BLAKE3 seed).
pub(super) struct Stream([u64; 4]);

impl Stream {
    /// The stream of `person` for `purpose`.
    pub(super) fn new(seed: u64, person: u32, purpose: &str) -> Self {
        let digest = digest(seed, person, purpose);
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(digest.chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte));
        }
        Self(words)
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number from 0 to `bound` − 1. `bound` is at least 1.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        // Multiply and keep the high half: 32 bits of the draw are enough for bounds of 32 bits.
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }

    /// A number from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: i64, high: i64) -> i64 {
        low + i64::from(self.below(u32::try_from(high - low + 1).expect("a small range")))
    }

    /// True in `permille` of 1,000 cases.
    pub(super) fn chance(&mut self, permille: u32) -> bool {
        self.below(1_000) < permille
    }

    /// One of `items`, each as likely as the next.
    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(u32::try_from(items.len()).expect("a short list")) as usize]
    }

    /// One of `items`, by weight.
    pub(super) fn weighted<'a, T>(&mut self, items: &'a [(u32, T)]) -> &'a T {
        let mut at = self.below(items.iter().map(|(weight, _)| weight).sum());
        for (weight, item) in items {
            if at < *weight {
                return item;
            }
            at -= weight;
        }
        unreachable!("the draw lies below the sum of the weights")
    }

    /// A lognormal factor in thousandths, median 1,000, log-spread 0.38, by its quantiles and straight lines between.
    pub(super) fn lognormal(&mut self) -> i64 {
        const QUANTILES: [i64; 33] = [
            385, 493, 558, 606, 646, 681, 714, 745, 774, 802, 830, 858, 886, 914, 942, 971, 1000, 1030, 1062, 1094,
            1129, 1165, 1204, 1246, 1292, 1343, 1401, 1468, 1548, 1650, 1791, 2030, 2598,
        ];
        let at = self.below(32 * 1_024);
        let (cell, part) = ((at / 1_024) as usize, i64::from(at % 1_024));
        QUANTILES[cell] + (QUANTILES[cell + 1] - QUANTILES[cell]) * part / 1_024
    }
}

/// 32 bytes named by (seed, person, purpose).
pub(super) fn digest(seed: u64, person: u32, purpose: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"vinculo simulator 1\n");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&person.to_le_bytes());
    hasher.update(purpose.as_bytes());
    *hasher.finalize().as_bytes()
}

/// An id in UUID form (version 4, variant 1), derived like everything else.
pub(super) fn uuid(seed: u64, person: u32, purpose: &str) -> String {
    let mut bytes = digest(seed, person, purpose);
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = hex(&bytes[..16]);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// 32 lower-case hex digits.
pub(super) fn hex32(seed: u64, person: u32, purpose: &str) -> String {
    hex(&digest(seed, person, purpose)[..16])
}

/// Lower-case hex of `bytes`.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)] as char, DIGITS[usize::from(b & 15)] as char]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_the_same_for_ever() {
        let mut stream = Stream::new(7, 42, "career");
        let drawn: Vec<u32> = (0..6).map(|_| stream.below(1_000)).collect();
        assert_eq!(drawn, FIRST_DRAWS);
        assert_eq!(uuid(7, 42, "link"), LINK_ID);
        assert_ne!(uuid(7, 42, "link"), uuid(7, 43, "link"));
    }

    // Written down once; a change here changes every simulated person.
    const FIRST_DRAWS: [u32; 6] = [296, 46, 308, 178, 820, 979];
    const LINK_ID: &str = "4a5207d2-a3b4-4bd5-b44f-304573c174c7";
}
