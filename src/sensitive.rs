//! What names a person: types that check it, key it, and do not print it.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

/// The eleven digits of a CPF. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Cpf([u8; 11]);

impl Cpf {
    /// Reads a CPF with or without dots and dash. `None` when it has other than eleven digits or wrong check digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut digits = [0; 11];
        let mut count = 0;
        for byte in text.bytes().filter(|byte| !matches!(byte, b'.' | b'-' | b'/' | b' ')) {
            *digits.get_mut(count)? = byte.is_ascii_digit().then_some(byte)?;
            count += 1;
        }
        let repeated = digits.iter().all(|&digit| digit == digits[0]);
        let right = [(9, 10), (10, 11)].iter().all(|&(length, first)| {
            let weights = (2..=first).rev();
            check_digit(digits[..length].iter().copied().zip(weights)) == digits[length]
        });
        (count == 11 && !repeated && right).then_some(Self(digits))
    }

    /// The digits, for the key of a person and for nothing else.
    pub fn digits(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Cpf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cpf(…)")
    }
}

/// The check digit, as a character, of characters with their weights: modulo 11 of the sum of value × weight, where a
/// character's value is its distance from `0`.
pub fn check_digit(weighted: impl Iterator<Item = (u8, u32)>) -> u8 {
    let sum: u32 = weighted.map(|(character, weight)| u32::from(character.wrapping_sub(b'0')) * weight).sum();
    match sum % 11 {
        0 | 1 => b'0',
        rest => b'0' + u8::try_from(11 - rest).unwrap_or(0),
    }
}

/// The key under which persons are told apart in tables that do not name them.
#[derive(Clone)]
pub struct Pepper(SecretString);

impl Pepper {
    /// A pepper; its UTF-8 bytes are the key.
    pub fn new(secret: SecretString) -> Self {
        Self(secret)
    }

    /// HMAC-SHA-256 of the parts, one after the other, in lower-case hex.
    pub fn key_of(&self, parts: &[&[u8]]) -> String {
        // HMAC takes keys of any length, so that this cannot fail.
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.0.expose_secret().as_bytes()).unwrap_or_else(|_| unreachable!());
        for part in parts {
            mac.update(part);
        }
        hex(&mac.finalize().into_bytes())
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(…)")
    }
}

/// Bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_digits_decide_what_a_cpf_is() {
        for right in ["52998224725", "529.982.247-25", "111.444.777-35", "11144477735"] {
            assert!(Cpf::parse(right).is_some(), "{right}");
        }
        for wrong in ["52998224724", "5299822472", "529982247250", "11111111111", "", "5299822472X"] {
            assert!(Cpf::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_person_has_the_published_key_and_no_printed_form() {
        let pepper = Pepper::new("pepper-for-tests".into());
        let cpf = Cpf::parse("529.982.247-25").unwrap();
        let key = pepper.key_of(&[cpf.digits()]);
        assert_eq!(key, "0ee07cb51e2ac13576fdf65c0a5a27e60a9870d889370e347ba1644db345f1f1");
        assert!(pepper.key_of(&[b"employer:", cpf.digits()]).starts_with("b551b89f6cea7d7e"));
        assert_eq!(format!("{cpf:?} {pepper:?}"), "Cpf(…) Pepper(…)");
    }
}
