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

/// Appends `text` to `out` with a `*` for each digit of a CPF in it. Eleven digits, with or without the dots and the
/// dash, are one when they check and no other digit stands beside them; everything else stays byte for byte.
pub fn push_without_cpfs(text: &str, out: &mut String) {
    let bytes = text.as_bytes();
    let (mut pushed, mut at) = (0, 0);
    while let Some(digits) = bytes[at..].iter().position(u8::is_ascii_digit) {
        at += digits;
        if let Some(length) = length_of_cpf(&bytes[at..]) {
            out.push_str(&text[pushed..at]);
            out.extend(text[at..at + length].chars().map(|c| if c.is_ascii_digit() { '*' } else { c }));
            at += length;
            pushed = at;
        } else {
            at += bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        }
    }
    out.push_str(&text[pushed..]);
}

/// The bytes of the CPF that `text` begins with, if it does.
fn length_of_cpf(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    for digit in 0..11 {
        if matches!((digit, text.get(at)?), (3 | 6, b'.') | (9, b'-')) {
            at += 1;
        }
        text.get(at).filter(|byte| byte.is_ascii_digit())?;
        at += 1;
    }
    let is_alone = !text.get(at).is_some_and(u8::is_ascii_digit);
    (is_alone && Cpf::parse(str::from_utf8(&text[..at]).ok()?).is_some()).then_some(at)
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
    use proptest::prelude::*;

    use super::*;

    fn without_cpfs(text: &str) -> String {
        let mut out = String::new();
        push_without_cpfs(text, &mut out);
        out
    }

    #[test]
    fn a_cpf_within_a_text_is_masked_and_no_other_number_is() {
        for (text, expected) in [
            ("PESSOA FICTÍCIA 52998224725", "PESSOA FICTÍCIA ***********"),
            ("52.998.224 PESSOA 529.982.247-25ª", "52.998.224 PESSOA ***.***.***-**ª"),
            ("é52998224725é11144477735", "é***********é***********"),
            ("529982247-25, 529.982.24725", "*********-**, ***.***.*****"),
            ("1.529.982.247-25", "1.***.***.***-**"),
        ] {
            assert_eq!(without_cpfs(text), expected);
        }
        for other in [
            "",
            "PESSOA FICTÍCIA 52998224724",
            "11222333000181 11.222.333/0001-81",
            "152998224725",
            "529982247251",
            "529.982.247-251",
            "529 982 247 25",
            "11111111111",
            "5299822472",
        ] {
            assert_eq!(without_cpfs(other), other);
        }
    }

    /// Eleven digits that check.
    fn cpf() -> impl Strategy<Value = String> {
        let whole = |mut digits: Vec<u8>| {
            for first in [10, 11] {
                let check = check_digit(digits.iter().copied().zip((2..=first).rev()));
                digits.push(check);
            }
            String::from_utf8(digits).unwrap()
        };
        proptest::collection::vec(b'0'..=b'9', 9)
            .prop_map(whole)
            .prop_filter("all alike", |cpf| Cpf::parse(cpf).is_some())
    }

    /// A word of a name that is no CPF, also beside others.
    fn word() -> impl Strategy<Value = String> {
        let broken = cpf().prop_map(|cpf| {
            let last = (cpf.as_bytes()[10] - b'0' + 1) % 10;
            format!("{}{last}", &cpf[..10])
        });
        prop_oneof!["[A-ZÁÇÕ&.-]{1,8}", "[0-9]{1,10}", "[0-9]{12,15}", broken]
    }

    proptest! {
        #[test]
        fn names_without_a_cpf_stay_byte_for_byte(words in proptest::collection::vec(word(), 0..6)) {
            let name = words.join(" ");
            prop_assert_eq!(without_cpfs(&name), name);
        }

        #[test]
        fn of_names_with_a_cpf_nothing_but_it_is_masked(before in word(), cpf in cpf(), after in word(), dotted: bool) {
            let written = if dotted {
                format!("{}.{}.{}-{}", &cpf[..3], &cpf[3..6], &cpf[6..9], &cpf[9..])
            } else {
                cpf
            };
            let masked = if dotted { "***.***.***-**" } else { "***********" };
            prop_assert_eq!(without_cpfs(&format!("{before} {written} {after}")), format!("{before} {masked} {after}"));
        }
    }

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
