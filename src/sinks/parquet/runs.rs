//! Small numbers in rows, most of them equal to the one before: Parquet's levels and dictionary indices.

/// Numbers as runs of equal ones.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: Vec<(u32, u32)>,
}

impl Runs {
    /// Appends `count` times `number`.
    #[inline]
    pub(super) fn push(&mut self, number: u32, count: u32) {
        match self.runs.last_mut() {
            Some((last, length)) if *last == number => *length += count,
            _ if count > 0 => self.runs.push((number, count)),
            _ => {}
        }
    }

    pub(super) fn clear(&mut self) {
        self.runs.clear();
    }

    /// From the first on.
    pub(super) fn cursor(&self) -> Cursor<'_> {
        Cursor { runs: self.runs.iter(), left: (0, 0) }
    }
}

/// A place among runs.
pub(super) struct Cursor<'r> {
    runs: std::slice::Iter<'r, (u32, u32)>,
    left: (u32, u32),
}

impl Cursor<'_> {
    /// The next `count` numbers, or as many as there are, as runs.
    pub(super) fn take(&mut self, mut count: u32) -> impl Iterator<Item = (u32, u32)> {
        std::iter::from_fn(move || {
            if count == 0 {
                return None;
            }
            if self.left.1 == 0 {
                self.left = *self.runs.next()?;
            }
            let (number, length) = self.left;
            let taken = length.min(count);
            self.left.1 -= taken;
            count -= taken;
            Some((number, taken))
        })
    }
}

/// Bits that numbers up to `largest` need; readers want at least one.
pub(super) fn bits_for(largest: u32) -> u8 {
    u8::try_from((u32::BITS - largest.leading_zeros()).max(1)).unwrap_or(32)
}

/// Shortest run that is written as a run. Parquet packs other numbers in groups of eight.
const GROUP: usize = 8;

/// Appends `runs` in Parquet's hybrid of runs and packed groups.
pub(super) fn encode(runs: impl Iterator<Item = (u32, u32)>, bits: u8, out: &mut Vec<u8>) {
    let mut packed: Vec<u32> = Vec::new();
    for (number, count) in runs {
        let mut count = count as usize;
        if count < GROUP {
            (0..count).for_each(|_| packed.push(number));
            continue;
        }
        // A group that was begun has to be full before a run.
        let filler = (GROUP - packed.len() % GROUP) % GROUP;
        packed.extend(std::iter::repeat_n(number, filler));
        count -= filler;
        if count >= GROUP {
            pack(&mut packed, bits, out);
            varint((count as u64) << 1, out);
            out.extend_from_slice(&number.to_le_bytes()[..usize::from(bits.div_ceil(8))]);
        } else {
            packed.extend(std::iter::repeat_n(number, count));
        }
    }
    pack(&mut packed, bits, out);
}

/// Writes the numbers in groups of eight, the last one filled up with zeroes.
fn pack(numbers: &mut Vec<u32>, bits: u8, out: &mut Vec<u8>) {
    if numbers.is_empty() {
        return;
    }
    let groups = numbers.len().div_ceil(GROUP);
    varint((groups as u64) << 1 | 1, out);
    numbers.resize(groups * GROUP, 0);
    let (mut pending, mut pending_bits) = (0_u64, 0);
    for &number in &*numbers {
        pending |= u64::from(number) << pending_bits;
        pending_bits += u32::from(bits);
        if pending_bits >= u32::BITS {
            let [word @ .., _, _, _, _] = pending.to_le_bytes();
            out.extend_from_slice(&word);
            pending >>= u32::BITS;
            pending_bits -= u32::BITS;
        }
    }
    // Eight numbers make whole bytes.
    out.extend_from_slice(&pending.to_le_bytes()[..pending_bits as usize / 8]);
    numbers.clear();
}

/// Appends runs of 0 and 1 as bits, the first of a byte in its last place.
pub(super) fn pack_flags(runs: impl Iterator<Item = (u32, u32)>, out: &mut Vec<u8>) {
    let (mut byte, mut place) = (0_u8, 0);
    for (flag, count) in runs {
        for _ in 0..count {
            byte |= u8::from(flag > 0) << place;
            place += 1;
            if place == u8::BITS {
                out.push(byte);
                (byte, place) = (0, 0);
            }
        }
    }
    if place > 0 {
        out.push(byte);
    }
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The format's own reading, number by number.
    fn decode(mut bytes: &[u8], bits: u8, count: usize) -> Vec<u32> {
        let width = usize::from(bits);
        let mut numbers = Vec::new();
        while numbers.len() < count {
            let mut header = 0_u64;
            let mut shift = 0;
            loop {
                let byte = bytes[0];
                bytes = &bytes[1..];
                header |= u64::from(byte & 0x7F) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let length = usize::try_from(header >> 1).unwrap();
            if header & 1 == 0 {
                let mut number = [0; 4];
                number[..width.div_ceil(8)].copy_from_slice(&bytes[..width.div_ceil(8)]);
                bytes = &bytes[width.div_ceil(8)..];
                numbers.extend(std::iter::repeat_n(u32::from_le_bytes(number), length));
            } else {
                let bit = |at: usize| u32::from(bytes[at / 8] >> (at % 8) & 1);
                numbers.extend((0..length * 8).map(|n| (0..width).map(|b| bit(n * width + b) << b).sum::<u32>()));
                bytes = &bytes[length * width..];
            }
        }
        assert!(bytes.is_empty());
        numbers.truncate(count);
        numbers
    }

    proptest! {
        #[test]
        fn what_is_encoded_reads_as_it_was(
            runs in prop::collection::vec((0_u32..300, 1_u32..40), 0..60), pages in 1_u32..50,
        ) {
            let mut kept = Runs::default();
            for &(number, count) in &runs {
                kept.push(number, count);
            }
            let expected: Vec<u32> = runs.iter().flat_map(|&(n, count)| std::iter::repeat_n(n, count as usize)).collect();
            let bits = bits_for(299);
            let (mut cursor, mut read) = (kept.cursor(), Vec::new());
            for page in expected.chunks(pages as usize) {
                let mut bytes = Vec::new();
                encode(cursor.take(u32::try_from(page.len()).unwrap()), bits, &mut bytes);
                read.extend(decode(&bytes, bits, page.len()));
            }
            prop_assert_eq!(read, expected);
        }
    }

    #[test]
    fn flags_are_bits() {
        let packed = |runs: &[(u32, u32)]| {
            let mut out = Vec::new();
            pack_flags(runs.iter().copied(), &mut out);
            out
        };
        assert!(packed(&[]).is_empty());
        assert_eq!(packed(&[(1, 8)]), [0xFF]);
        assert_eq!(packed(&[(0, 1), (1, 2), (0, 7), (1, 1)]), [0b110, 0b100]);
    }

    #[test]
    fn a_number_has_as_many_bits_as_the_largest_needs() {
        assert_eq!([0, 1, 2, 3, 4, 255, 256, u32::MAX].map(bits_for), [1, 1, 2, 2, 3, 8, 9, 32]);
    }
}
