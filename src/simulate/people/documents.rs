//! Brazilian document numbers: check digits, and openly fake numbers whose digits are right.

use super::EVERYBODY;

/// A CPF of 11 digits with the body `99` and `number` in seven digits.
pub(crate) fn cpf(number: u32) -> String {
    with_check_digits(format!("99{:07}", number % EVERYBODY), &CPF_WEIGHTS)
}

/// A CNPJ of 14 characters: a root of eight, a branch of four, two check digits.
pub(crate) fn cnpj(root: &str, branch: u32) -> String {
    with_check_digits(format!("{root}{branch:04}"), &CNPJ_WEIGHTS)
}

/// The eight characters that name the employer `number`; every eighth has letters, as new ones may have since July
/// 2026.
pub(crate) fn cnpj_root(number: u32) -> String {
    if number % 8 == 5 {
        let letter = char::from(b'A' + u8::try_from(number / 8 % 26).expect("below 26"));
        return format!("99{letter}{:05}", number % 100_000);
    }
    format!("99{:06}", number % 1_000_000)
}

/// Whether `code` is 11 digits whose last two are right; eleven equal digits are not a CPF.
pub(crate) fn is_cpf(code: &str) -> bool {
    code.len() == 11
        && code.bytes().all(|b| b.is_ascii_digit())
        && code.bytes().any(|b| b != code.as_bytes()[0])
        && with_check_digits(code[..9].to_owned(), &CPF_WEIGHTS) == code
}

/// Whether `code` is 12 characters of `[0-9A-Z]` and two right digits.
pub(crate) fn is_cnpj(code: &str) -> bool {
    code.len() == 14
        && code.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase())
        && with_check_digits(code[..12].to_owned(), &CNPJ_WEIGHTS) == code
}

/// Weights of the second digit; the first one's are the same without the first weight.
const CPF_WEIGHTS: [u32; 10] = [11, 10, 9, 8, 7, 6, 5, 4, 3, 2];
const CNPJ_WEIGHTS: [u32; 13] = [6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2];

fn with_check_digits(mut body: String, weights: &[u32]) -> String {
    for skipped in [1, 0] {
        let sum: u32 = body.bytes().zip(&weights[skipped..]).map(|(b, weight)| u32::from(b - b'0') * weight).sum();
        let digit = if sum % 11 < 2 { 0 } else { 11 - sum % 11 };
        body.push(char::from_digit(digit, 10).expect("one digit"));
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_digits_match_the_known_numbers() {
        assert!(is_cpf("52998224725") && is_cpf("11144477735"));
        assert!(!is_cpf("52998224724") && !is_cpf("11111111111") && !is_cpf("5299822472"));
        assert!(is_cnpj("11222333000181") && is_cnpj("00000000000191") && is_cnpj("12ABC34501DE35"));
        assert!(!is_cnpj("11222333000182"));
        assert!(is_cpf(&cpf(42)) && cpf(42).starts_with("990000042"));
        assert!(is_cnpj(&cnpj(&cnpj_root(5), 1)) && cnpj_root(5) == "99A00005");
    }
}
