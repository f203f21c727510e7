//! A record's JSON on its way into the state and back.
//!
//! *Takes* the text of a record. *Gives* it compressed, and from that every byte of it again. *Promises* to read what
//! any earlier version wrote.
//!
//! A record is small, and most of it is what all records have in common: names of fields, months, types. So it is
//! compressed with a dictionary of that, which takes half the time and leaves little more than half the bytes of zstd
//! alone (measured on the simulator's records: 325 bytes instead of 593). The dictionary is made by
//! `scripts/train-dictionary.py` of simulated people, and is never changed: whatever was written with it needs it. A
//! better one is another file with another id.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::sync::LazyLock;

use zstd::bulk::{Compressor, Decompressor};
use zstd::dict::{DecoderDictionary, EncoderDictionary};
use zstd::zstd_safe::{CParameter, get_dict_id_from_frame};

use crate::store::Error;

/// What records have in common.
const DICTIONARY: &[u8] = include_bytes!("bodies-1.dict");

/// Its id, which every body that was written with it begins with.
const DICTIONARY_ID: u32 = 40_001;

/// The level that costs less time than the disk saves.
const LEVEL: i32 = 1;

/// No stored body is larger, in bytes: a damaged one may say anything.
const LARGEST: usize = 1 << 30;

static ENCODER: LazyLock<EncoderDictionary<'static>> = LazyLock::new(|| EncoderDictionary::copy(DICTIONARY, LEVEL));
static DECODER: LazyLock<DecoderDictionary<'static>> = LazyLock::new(|| DecoderDictionary::copy(DICTIONARY));

thread_local! {
    /// Making one costs more than using it.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    /// For bodies from before there was a dictionary.
    static PLAIN_DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The text, compressed.
pub(super) fn pack(body: &str) -> Vec<u8> {
    COMPRESSOR.with_borrow_mut(|slot| {
        let compressor = match slot {
            Some(compressor) => compressor,
            None => slot.insert(compressor()),
        };
        compressor.compress(body.as_bytes()).expect("memory compresses into memory")
    })
}

/// One that ends each frame with a checksum of the text: without `state.encryption_key` nothing else tells that a bit
/// of a body was flipped, and a flipped digit is an amount like any other. It costs four bytes, and a twentieth of the
/// time of compressing. Bodies from before have none.
fn compressor() -> Compressor<'static> {
    let mut compressor = Compressor::with_prepared_dictionary(&ENCODER).expect("the dictionary is one");
    compressor.set_parameter(CParameter::ChecksumFlag(true)).expect("every zstd knows checksums");
    compressor
}

/// The JSON of a body, opened before.
///
/// # Errors
/// [`Error::Unreadable`] when the body is damaged.
pub fn unpack(body: &[u8]) -> Result<String, Error> {
    let bytes = match get_dict_id_from_frame(body).map(NonZeroU32::get) {
        Some(DICTIONARY_ID) => decompress(&DECOMPRESSOR, || Decompressor::with_prepared_dictionary(&DECODER), body),
        None => decompress(&PLAIN_DECOMPRESSOR, Decompressor::new, body),
        Some(_) => None,
    };
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or(Error::Unreadable("a record's body"))
}

fn decompress(
    of_thread: &'static std::thread::LocalKey<RefCell<Option<Decompressor<'static>>>>,
    make: impl FnOnce() -> std::io::Result<Decompressor<'static>>,
    body: &[u8],
) -> Option<Vec<u8>> {
    let size = Decompressor::upper_bound(body).filter(|size| *size <= LARGEST && !body.is_empty())?;
    of_thread.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(make().ok()?),
        };
        decompressor.decompress(body, size).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"id":"1","employer_data":{"name":"EMPRESA FICTÍCIA"},"salaries":[{"base_amount":1.00,"retained_amount":0.10,"type":"REGULAR","month":"2026-01","currency":"BRL"}]}"#;

    #[test]
    fn what_is_packed_is_unpacked_to_the_byte_and_is_smaller_than_without_the_dictionary() {
        for body in [RECORD, "", "{}", "not JSON at all", &RECORD.repeat(2_000)] {
            assert_eq!(unpack(&pack(body)).unwrap(), body);
        }
        let plain = zstd::bulk::compress(RECORD.as_bytes(), LEVEL).unwrap();
        assert!(pack(RECORD).len() * 2 < plain.len(), "{} {}", pack(RECORD).len(), plain.len());
    }

    #[test]
    fn bodies_from_before_the_dictionary_are_read_and_those_of_another_are_not() {
        let plain = zstd::bulk::compress(RECORD.as_bytes(), LEVEL).unwrap();
        assert_eq!(unpack(&plain).unwrap(), RECORD);
        // The id follows the magic number and the descriptor of the frame.
        let mut other = pack(RECORD);
        assert_eq!(other[5..7], u16::try_from(DICTIONARY_ID).unwrap().to_le_bytes());
        other[5] ^= 1;
        assert!(unpack(&other).is_err());
        assert!(unpack(&pack(RECORD)[..20]).is_err() && unpack(b"").is_err());
    }

    #[test]
    fn a_flipped_bit_is_told_wherever_it_is_and_bodies_without_a_checksum_are_read() {
        let packed = pack(RECORD);
        for bit in 0..packed.len() * 8 {
            let mut flipped = packed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Where a flip changes nothing that is read, nothing is damaged.
            assert!(unpack(&flipped).map_or(true, |text| text == RECORD), "bit {bit}");
        }
        let without = Compressor::with_prepared_dictionary(&ENCODER).unwrap().compress(RECORD.as_bytes()).unwrap();
        assert_eq!(without.len() + 4, packed.len());
        assert_eq!(unpack(&without).unwrap(), RECORD);
    }

    #[test]
    fn the_dictionary_is_the_one_that_bodies_were_written_with() {
        let hash = blake3::hash(DICTIONARY).to_hex();
        assert_eq!(
            hash.as_str(),
            "cfd38022aba0918737d9db8e5eb45b0160f5bad15f6270d2df029e99992b706d",
            "states that exist need the dictionary as it was"
        );
    }
}
