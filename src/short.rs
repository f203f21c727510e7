//! A text of at most seven bytes as one number, which is copied, compared and looked up like one.

use std::num::NonZeroU64;

/// Its bytes, the first one lowest, above them zeroes; uppermost its length and [`Short::MARK`], so that the numbers of
/// different texts differ, and that none is 0: one that may be missing takes no more room.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Short(NonZeroU64);

impl Short {
    /// Bytes of the longest.
    pub const LONGEST: usize = 7;

    /// A bit that the number of each has.
    pub const MARK: u64 = 1 << 63;

    /// The first `len` bytes of `chunk`, at most [`Short::LONGEST`].
    #[inline]
    pub fn start_of(chunk: [u8; 8], len: usize) -> Self {
        const MARK: NonZeroU64 = NonZeroU64::new(Short::MARK).expect("a bit is set");
        let bytes = u64::from_le_bytes(chunk) & !(u64::MAX << (8 * len));
        Self(MARK | bytes | (len as u64) << 56)
    }

    /// All of `text`, if it is short.
    #[inline]
    pub fn of(text: &[u8]) -> Option<Self> {
        let len = text.len();
        let four = |bytes: &[u8]| bytes.first_chunk().map_or(0, |four| u64::from(u32::from_le_bytes(*four)));
        let word = match len {
            0 => 0,
            // The middle one is the first or the last one, too, when there are fewer.
            1..4 => [0, len / 2, len - 1].into_iter().fold(0, |word, at| word | u64::from(text[at]) << (8 * at)),
            4..8 => four(text) | four(&text[len - 4..]) << (8 * (len - 4)),
            _ => return None,
        };
        Some(Self::start_of(word.to_le_bytes(), len))
    }

    /// The number of each is its own.
    #[inline]
    pub fn number(self) -> u64 {
        self.0.get()
    }

    /// The text that has this number; `None` when none has.
    #[inline]
    pub fn of_number(number: u64) -> Option<Self> {
        NonZeroU64::new(number).filter(|number| number.get() & Self::MARK != 0).map(Self)
    }

    /// Its bytes, and zeroes after them up to the last, which is not one of them.
    #[inline]
    pub fn chunk(self) -> [u8; 8] {
        self.number().to_le_bytes()
    }

    /// How many bytes it has.
    #[inline]
    pub fn len(self) -> usize {
        (self.number() >> 56) as usize & Self::LONGEST
    }

    /// Whether it has none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// A number that compares as the texts do, as far as they hold no byte 0.
    #[inline]
    pub fn rank(self) -> u64 {
        (self.number() & u64::MAX >> 8).swap_bytes()
    }
}

/// What is known of short texts that came lately, by the numbers of so many together.
pub struct Recent<const N: usize, V>(Vec<([u64; N], V)>);

/// How many places there are; a pair of numbers has twice as many.
const PLACES: usize = 512;

impl<const N: usize, V> Default for Recent<N, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<const N: usize, V: Copy + Default> Recent<N, V> {
    /// What is known of these.
    #[inline]
    pub fn find(&self, numbers: [u64; N]) -> Option<&V> {
        self.0.get(place_of(numbers)).filter(|(known, _)| *known == numbers).map(|(_, value)| value)
    }

    /// Keeps what is known of these, in the place of others.
    pub fn keep(&mut self, numbers: [u64; N], value: V) {
        // No text has the number 0.
        self.0.resize(PLACES * N, ([0; N], V::default()));
        self.0[place_of(numbers)] = (numbers, value);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Where what is known of texts with these numbers is kept. Most short texts are months, and by this multiplier each
/// has the place after that of the month before it, for some forty years: each digit of `YYYY-MM` counts as many places
/// as it stands for months, of 13 a year. Others fall wherever they do.
#[inline]
fn place_of<const N: usize>(numbers: [u64; N]) -> usize {
    const MONTHS: u64 = 200 << 55 | 276 << 47 | 130 << 39 | 13 << 31 | 10 << 15 | 1 << 7;
    // So many bits more than those of `PLACES`.
    let more = N.ilog2();
    let sum = numbers.into_iter().fold(0, u64::wrapping_add);
    ((sum.wrapping_mul(MONTHS >> more) >> 32) as usize >> (23 - more)) % (PLACES * N)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_months_of_forty_years_have_places_of_their_own() {
        let number = |text: &str| Short::of(text.as_bytes()).unwrap().number();
        let years = |years: std::ops::Range<u32>| {
            years.flat_map(|year| (1..=13).map(move |month| format!("{year}-{month:02}")))
        };
        let months: HashSet<usize> = years(1990..2029).map(|month| place_of([number(&month)])).collect();
        assert!(months.len() > 39 * 13 - 10, "{}", months.len());
        // Older pay has no type, which no text says, and the other is regular: neither pushes the other out.
        let types = [Short::MARK - 1, number("REGULAR")];
        let of_type = |of: u64| years(1990..2029).map(move |month| place_of([of, number(&month)]));
        let both: HashSet<usize> = types.into_iter().flat_map(of_type).collect();
        assert!(both.len() > 2 * (39 * 13 - 10), "{}", both.len());
    }

    proptest! {
        #[test]
        fn it_is_its_text(text in "[ab\0é]{0,5}", after in "[a-z]{8}") {
            let short = Short::of(text.as_bytes());
            prop_assert_eq!(short.is_some(), text.len() <= Short::LONGEST);
            let Some(short) = short else { return Ok(()) };
            prop_assert_eq!(&short.chunk()[..short.len()], text.as_bytes());
            prop_assert_eq!(short.is_empty(), text.is_empty());
            let longer = format!("{text}{after}");
            let start = Short::start_of(*longer.as_bytes().first_chunk().unwrap(), text.len());
            prop_assert!(start == short && Short::of_number(short.number()) == Some(short));
        }

        #[test]
        fn ranks_compare_as_the_texts_do(a in "[a-cé]{0,3}", b in "[a-cé]{0,3}") {
            let rank = |text: &str| Short::of(text.as_bytes()).unwrap().rank();
            prop_assert_eq!(rank(&a).cmp(&rank(&b)), a.cmp(&b));
        }
    }
}
