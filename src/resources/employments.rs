//! Employments: the jobs that INSS knows of a person, with occupations and monthly pay.
//!
//! What is peculiar: Belvo may re-issue a job's id, so that employer and start tell jobs apart too; codes of employers,
//! activities and occupations hide in free text; an employer may be a person.

use std::borrow::Cow;

use chrono::NaiveDate;

use super::{Derive, Resource};
use crate::clock::{days_since_1970, digits};
use crate::json::Fields;
use crate::sensitive::{Pepper, check_digit, push_without_cpfs};

/// `GET /api/br/employments/`.
pub static RESOURCE: Resource = Resource {
    name: "employments",
    record_name: "employment",
    endpoint: "/api/br/employments/",
    needs_link: true,
    webhook_type: "EMPLOYMENTS",
    total_key: "total_employments",
    schema: include_str!("../../schemas/employments.toml"),
    likeness,
    derived,
};

/// Employer and start, where Belvo sends both, be it null. The employer is its key; a person's is left out, because a
/// hash of a CPF can be guessed.
fn likeness(fields: &Fields<'_>) -> Option<String> {
    let code = match fields.get("employer_data")? {
        "null" => None,
        employer => serde_json::from_str::<Option<Cow<'_, str>>>(Fields::read(employer)?.get("code")?).ok()?,
    };
    let start_date: Option<Cow<'_, str>> = serde_json::from_str(fields.get("start_date")?).ok()?;
    let code = code.as_deref().and_then(EmployerCode::read);
    let employer = match &code {
        Some(code) if code.kind == CodeKind::Cpf => "CPF",
        Some(code) => code.key(),
        None => "",
    };
    // One that no calendar has says nothing of when the job began.
    let start_date = start_date.map(|date| date.parse::<NaiveDate>().map(|_| date)).transpose().ok()?;
    Some(format!("{employer}\n{}", start_date.unwrap_or_default()))
}

fn derived(name: &str) -> Option<Derive> {
    Some(match name {
        "employer_name" => Derive::Text(employer_name),
        "employer_code" => Derive::Piece(|inputs| inputs[0].filter(|code| !is_person(code))),
        "person_employer_name" => Derive::Piece(|inputs| inputs[0].filter(|_| inputs[1].is_some_and(is_person))),
        "person_employer_code" => Derive::Piece(|inputs| inputs[0].filter(|code| is_person(code))),
        "employer_code_type" => Derive::Piece(|inputs| Some(EmployerCode::read(inputs[0]?)?.kind.name())),
        "employer_key" => Derive::Text(employer_key),
        "cnae_class" => Derive::Text(|inputs, _, out| {
            inputs[0].and_then(cnae_class).map(|class| out.extend(class.map(char::from))).is_some()
        }),
        "cnae_division" => Derive::Piece(|inputs| {
            let activity = inputs[0]?;
            cnae_class(activity)?;
            activity.trim_start().get(..2)
        }),
        "cnae_section" => Derive::Piece(|inputs| inputs[0].and_then(cnae_class).and_then(cnae_section)),
        "is_open" => Derive::Boolean(|inputs| inputs[0].is_none()),
        "cbo_code" => Derive::Text(|inputs, _, out| {
            let Some((family, subgroup)) = inputs[0].and_then(cbo) else { return false };
            out.push_str(family);
            out.push_str(subgroup);
            true
        }),
        "cbo_family" => Derive::Piece(|inputs| Some(cbo(inputs[0]?)?.0)),
        "cbo_major_group" => Derive::Piece(|inputs| cbo(inputs[0]?)?.0.get(..1)),
        "reference_month" => Derive::Date(|inputs| inputs[0].and_then(reference_month)),
        "salary_type" => Derive::Piece(|inputs| match (inputs[0], inputs[1]) {
            (None | Some("REGULAR"), Some(month)) if is_thirteenth(month) => Some("THIRTEENTH"),
            (sent, _) => sent,
        }),
        _ => return None,
    })
}

/// What kind of number an employer is registered under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CodeKind {
    CnpjRoot,
    Cpf,
    Cnpj,
    CeiCno,
    Other,
}

impl CodeKind {
    fn name(self) -> &'static str {
        match self {
            Self::CnpjRoot => "CNPJ_ROOT",
            Self::Cpf => "CPF",
            Self::Cnpj => "CNPJ",
            Self::CeiCno => "CEI_CNO",
            Self::Other => "OTHER",
        }
    }
}

/// Whether the employer is registered under a CPF. Wrong check digits do not make it less of a person.
fn is_person(code: &str) -> bool {
    // Most have more digits, as every CNPJ has.
    if code.as_bytes().first_chunk::<12>().is_some_and(|head| head.iter().fold(true, |all, c| all & c.is_ascii_digit()))
    {
        return false;
    }
    let mut characters = code.chars().filter(|&c| !is_separator(c));
    characters.by_ref().take(11).filter(char::is_ascii_digit).count() == 11 && characters.next().is_none()
}

/// What may stand between the characters of an employer code, and says nothing.
fn is_separator(c: char) -> bool {
    c.is_whitespace() || matches!(c, '.' | '/' | '-')
}

/// An employer code in upper case without blanks, dots, slashes and dashes.
fn bare(code: &str) -> Cow<'_, str> {
    // Most come so.
    if code.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase()) {
        return Cow::Borrowed(code);
    }
    let kept = code.chars().filter(|&c| !is_separator(c));
    Cow::Owned(kept.flat_map(char::to_uppercase).collect())
}

/// A [`bare`] employer code, and what it is.
struct EmployerCode<'c> {
    bare: Cow<'c, str>,
    kind: CodeKind,
}

impl<'c> EmployerCode<'c> {
    /// `None` when nothing is left of it.
    fn read(code: &'c str) -> Option<Self> {
        let bare = Some(bare(code)).filter(|bare| !bare.is_empty())?;
        let bytes = bare.as_bytes();
        let digits = bytes.iter().all(u8::is_ascii_digit);
        let alphanumeric = digits || bytes.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
        let kind = match bytes.len() {
            8 if alphanumeric => CodeKind::CnpjRoot,
            11 if digits => CodeKind::Cpf,
            12 if digits => CodeKind::CeiCno,
            14 if alphanumeric && has_cnpj_check_digits(bytes) => CodeKind::Cnpj,
            _ => CodeKind::Other,
        };
        Some(Self { bare, kind })
    }

    /// One employer whatever its branch; for a CPF the digits.
    fn key(&self) -> &str {
        if self.kind == CodeKind::Cnpj { &self.bare[..8] } else { &self.bare }
    }
}

fn has_cnpj_check_digits(code: &[u8]) -> bool {
    [(12, [5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2].as_slice()), (13, &[6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2])].iter().all(
        |(length, weights)| check_digit(code[..*length].iter().copied().zip(weights.iter().copied())) == code[*length],
    )
}

/// A firm of one person (MEI) is registered under a CNPJ, and under that person's name and CPF.
fn employer_name(inputs: &[Option<&str>], _pepper: Option<&Pepper>, out: &mut String) -> bool {
    let Some(name) = inputs[0].filter(|_| !inputs[1].is_some_and(is_person)) else { return false };
    push_without_cpfs(name, out);
    true
}

fn employer_key(inputs: &[Option<&str>], pepper: Option<&Pepper>, out: &mut String) -> bool {
    let Some(code) = inputs[0].and_then(EmployerCode::read) else { return false };
    match (code.kind, pepper) {
        (CodeKind::Cpf, None) => return false,
        (CodeKind::Cpf, Some(pepper)) => out.push_str(&pepper.key_of(&[b"employer:", code.bare.as_bytes()])),
        _ => out.push_str(code.key()),
    }
    true
}

/// The five digits of a CNAE class at the start of the text: `dd[.]dd[-]d`, perhaps with a subclass of two more digits,
/// and no digit after that.
fn cnae_class(activity: &str) -> Option<[u8; 5]> {
    let text = activity.trim_start().as_bytes();
    let mut at = 0;
    let mut class = [0; 5];
    for (index, digit) in class.iter_mut().enumerate() {
        if (index == 2 && text.get(at) == Some(&b'.')) || (index == 4 && text.get(at) == Some(&b'-')) {
            at += 1;
        }
        *digit = text.get(at).copied().filter(u8::is_ascii_digit)?;
        at += 1;
    }
    let is_digit = |at: usize| text.get(at).is_some_and(u8::is_ascii_digit);
    let separated = usize::from(matches!(text.get(at), Some(b'/' | b'-')));
    let subclass = is_digit(at + separated) && is_digit(at + separated + 1) && !is_digit(at + separated + 2);
    (subclass || !is_digit(at)).then_some(class)
}

fn cnae_section(class: [u8; 5]) -> Option<&'static str> {
    Some(match (class[0] - b'0') * 10 + (class[1] - b'0') {
        1..=3 => "A",
        5..=9 => "B",
        10..=33 => "C",
        35 => "D",
        36..=39 => "E",
        41..=43 => "F",
        45..=47 => "G",
        49..=53 => "H",
        55..=56 => "I",
        58..=63 => "J",
        64..=66 => "K",
        68 => "L",
        69..=75 => "M",
        77..=82 => "N",
        84 => "O",
        85 => "P",
        86..=88 => "Q",
        90..=93 => "R",
        94..=96 => "S",
        97 => "T",
        99 => "U",
        _ => return None,
    })
}

/// The CBO code `dddd[-]dd` that ends the title, unless a digit stands before it: its family and the rest.
fn cbo(title: &str) -> Option<(&str, &str)> {
    let title = title.trim_end();
    let (head, subgroup) = title.split_at_checked(title.len().checked_sub(2)?)?;
    let head = head.strip_suffix('-').unwrap_or(head);
    let (before, family) = head.split_at_checked(head.len().checked_sub(4)?)?;
    let are_digits = family.bytes().chain(subgroup.bytes()).all(|byte| byte.is_ascii_digit());
    (are_digits && !before.ends_with(|last: char| last.is_ascii_digit())).then_some((family, subgroup))
}

/// The first day of a month `YYYY-MM`; month 13 is December.
fn reference_month(text: &str) -> Option<i32> {
    let (year, month) = year_and_month(text)?;
    // Readers know no year before the first.
    if year > 0 && (1..=13).contains(&month) { days_since_1970(year, month.min(12), 1) } else { None }
}

fn is_thirteenth(month: &str) -> bool {
    month.ends_with("-13") && year_and_month(month).is_some()
}

fn year_and_month(text: &str) -> Option<(i32, u32)> {
    let [y1, y2, y3, y4, b'-', m1, m2] = *text.as_bytes().as_array()? else { return None };
    Some((i32::try_from(digits(&[y1, y2, y3, y4])?).ok()?, digits(&[m1, m2])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str, inputs: &[Option<&str>]) -> Option<String> {
        match derived(name) {
            Some(Derive::Text(function)) => {
                let mut out = String::new();
                function(inputs, Some(&Pepper::new("pepper-for-tests".into())), &mut out).then_some(out)
            }
            Some(Derive::Piece(function)) => function(inputs).map(str::to_owned),
            _ => panic!("{name} is no text"),
        }
    }

    #[test]
    fn employer_codes_are_told_apart_by_length_and_check_digits() {
        for (code, kind, key) in [
            ("11222333", "CNPJ_ROOT", "11222333"),
            ("11.222.333/0001-81", "CNPJ", "11222333"),
            ("12abc34501de35", "CNPJ", "12ABC345"),
            ("00000000000191", "CNPJ", "00000000"),
            ("11222333000182", "OTHER", "11222333000182"),
            ("111222333444", "CEI_CNO", "111222333444"),
            ("1234567", "OTHER", "1234567"),
            ("é1234567", "OTHER", "É1234567"),
        ] {
            assert_eq!(text("employer_code_type", &[Some(code)]).as_deref(), Some(kind), "{code}");
            assert_eq!(text("employer_key", &[Some(code)]).as_deref(), Some(key), "{code}");
            assert_eq!(text("employer_code", &[Some(code)]).as_deref(), Some(code), "kept as sent");
        }
        for none in [None, Some(""), Some(" - ")] {
            assert_eq!((text("employer_code_type", &[none]), text("employer_key", &[none])), (None, None), "{none:?}");
            assert_eq!(text("employer_code", &[none]).as_deref(), none);
        }
    }

    #[test]
    fn an_employer_that_is_a_person_has_a_key_and_no_name() {
        for code in ["529.982.247-25", "52998224724"] {
            assert_eq!(text("employer_code_type", &[Some(code)]).as_deref(), Some("CPF"));
            assert_eq!(text("employer_code", &[Some(code)]), None);
            assert_eq!(text("employer_name", &[Some("PESSOA FICTÍCIA"), Some(code)]), None);
        }
        let key = text("employer_key", &[Some("529.982.247-25")]).unwrap();
        assert!(key.starts_with("b551b89f6cea7d7e"), "{key}");
        assert_eq!(
            alike(r#"{"employer_data":{"code":"52998224725"},"start_date":"2020-01-01"}"#).unwrap(),
            "CPF\n2020-01-01"
        );
    }

    #[test]
    fn the_name_of_a_firm_of_one_person_tells_no_cpf() {
        let code = Some("11222333000181");
        let name = |name| text("employer_name", &[Some(name), code]);
        assert_eq!(name("PESSOA FICTÍCIA 52998224725").as_deref(), Some("PESSOA FICTÍCIA ***********"));
        for same in ["EMPRESA FICTÍCIA 0042 LTDA", ""] {
            assert_eq!(name(same).as_deref(), Some(same));
        }
        assert_eq!(text("employer_name", &[None, code]), None);
    }

    fn alike(job: &str) -> Option<String> {
        likeness(&Fields::read(job).unwrap())
    }

    #[test]
    fn jobs_are_alike_by_employer_and_start() {
        for (job, expected) in [
            (
                r#"{"employer_data":{"name":"x","code":"99.000.042"},"start_date":"2020-01-01"}"#,
                Some("99000042\n2020-01-01"),
            ),
            (r#"{"employer_data":{"code":null},"start_date":null}"#, Some("\n")),
            (r#"{"employer_data":null,"start_date":null}"#, Some("\n")),
            // What is not sent may be as it was.
            (r#"{"employer_data":{"code":"99000042"}}"#, None),
            (r#"{"employer_data":{"name":"x"},"start_date":"2020-01-01"}"#, None),
            (r#"{"start_date":"2020-01-01"}"#, None),
            (r#"{"employer_data":7,"start_date":"2020-01-01"}"#, None),
            (r#"{"employer_data":{},"start_date":20200101}"#, None),
            (r#"{"employer_data":{},"start_date":"2020-02-30"}"#, None),
        ] {
            assert_eq!(alike(job).as_deref(), expected, "{job}");
        }
    }

    #[test]
    fn activities_are_read_as_far_as_they_are_codes() {
        for (activity, class, section) in [
            ("6421-2 - BANCOS COMERCIAIS", Some("64212"), Some("K")),
            ("  64.21-2/00 Bancos", Some("64212"), Some("K")),
            ("6421200", Some("64212"), Some("K")),
            ("64212", Some("64212"), Some("K")),
            ("0411-3", Some("04113"), None),
            ("642123", None, None),
            ("64212-001", Some("64212"), Some("K")),
            ("BANCOS 6421-2", None, None),
            ("", None, None),
        ] {
            assert_eq!(text("cnae_class", &[Some(activity)]).as_deref(), class, "{activity}");
            assert_eq!(text("cnae_section", &[Some(activity)]).as_deref(), section, "{activity}");
        }
    }

    #[test]
    fn occupations_are_read_from_the_end_of_the_title() {
        for (title, code) in [
            ("ANALISTA DE PRODUTOS BANCARIOS - 2525-40", Some("252540")),
            ("ANALISTA 252540  ", Some("252540")),
            ("ANALISTA 12525-40", None),
            ("GARCOM", None),
            ("2525-40 ANALISTA", None),
            ("-40", None),
        ] {
            assert_eq!(text("cbo_code", &[Some(title)]).as_deref(), code, "{title}");
        }
        assert_eq!(text("cbo_family", &[Some("X - 2525-40")]).as_deref(), Some("2525"));
        assert_eq!(text("cbo_major_group", &[Some("X - 2525-40")]).as_deref(), Some("2"));
    }

    #[test]
    fn month_thirteen_is_december_and_a_thirteenth_salary() {
        assert_eq!(reference_month("2025-13"), days_since_1970(2025, 12, 1));
        assert_eq!(reference_month("2025-02"), days_since_1970(2025, 2, 1));
        for wrong in ["2025-00", "2025-14", "2025-1", "202-011", "2025/01", "", "2025-+1"] {
            assert_eq!(reference_month(wrong), None, "{wrong}");
        }
        assert_eq!(text("salary_type", &[Some("REGULAR"), Some("2025-13")]).as_deref(), Some("THIRTEENTH"));
        assert_eq!(text("salary_type", &[None, Some("2025-13")]).as_deref(), Some("THIRTEENTH"));
        assert_eq!(text("salary_type", &[Some("BONUS"), Some("2025-13")]).as_deref(), Some("BONUS"));
        assert_eq!(text("salary_type", &[None, Some("2025-12")]), None);
    }
}
