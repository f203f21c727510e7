//! Who a person is, and the owner record that the institution keeps.

use chrono::NaiveDate;

use super::Timeline;
use super::documents;
use crate::simulate::calendar::{date, shift};
use crate::simulate::random::{Stream, hex32};

/// Who a person is.
pub(crate) struct Identity {
    /// Day of birth.
    pub born: NaiveDate,
    /// Whether the person is a woman.
    pub woman: bool,
    /// The owner record, with its changes.
    pub owner: Timeline<Owner>,
}

/// The owner record. An empty text and none are different things.
#[derive(Clone)]
pub(crate) struct Owner {
    /// Full name.
    pub display_name: Option<String>,
    /// Electronic mail.
    pub email: Option<String>,
    /// Telephone.
    pub phone_number: Option<String>,
    /// Postal address.
    pub address: Option<String>,
    /// The institution's own id.
    pub internal_identification: Option<String>,
    /// Kind and number of the document; none: no document at all.
    pub document: Option<Document>,
    /// Whether the deprecated keys `business_name`, `first_name`, … are sent too.
    pub deprecated_names: bool,
}

/// A document as sent.
#[derive(Clone)]
pub(crate) struct Document {
    /// `CPF` and the like.
    pub kind: Option<&'static str>,
    /// In one of three spellings.
    pub number: Option<String>,
}

impl Identity {
    /// Person `number`.
    pub(crate) fn of(seed: u64, number: u32) -> Self {
        let mut stream = Stream::new(seed, number, "identity");
        let woman = stream.chance(470);
        // Ages from 18 to 64 at the end of 2026, more of them young.
        let age = 18 + stream.below(47).min(stream.below(64));
        let born = shift(date(2026 - age.cast_signed(), 11, 20), -stream.between(0, 364));
        let cpf = documents::cpf(number);

        let owner = Owner::of(seed, number, woman, &cpf, &mut stream);
        let moved = Owner { address: Some(address(&mut stream)), phone_number: Some(phone(number)), ..owner.clone() };
        let changes_on = shift(date(2026, 12, 1), stream.between(0, 900));
        let mut record = Timeline::since(born, owner);
        // Person 13 (`corrigido`) changes soon; of the others one in five, some day.
        if number == 13 {
            record = record.then(date(2026, 12, 8), moved);
        } else if stream.chance(200) {
            record = record.then(changes_on, moved);
        }
        Self { born, woman, owner: record }
    }
}

impl Owner {
    fn of(seed: u64, number: u32, woman: bool, cpf: &str, stream: &mut Stream) -> Self {
        const WOMEN: [&str; 12] = [
            "ANA", "BEATRIZ", "CAMILA", "DANIELA", "ELISA", "FERNANDA", "GABRIELA", "HELENA", "INÊS", "JÚLIA", "LUÍZA",
            "MARIA",
        ];
        const MEN: [&str; 12] = [
            "ANDRÉ", "BRUNO", "CARLOS", "DIEGO", "EDUARDO", "FELIPE", "GUSTAVO", "HUGO", "IVAN", "JOÃO", "LUCAS",
            "MATEUS",
        ];
        const FAMILIES: [&str; 12] = [
            "DA SILVA",
            "DOS SANTOS",
            "OLIVEIRA",
            "SOUZA",
            "LIMA",
            "PEREIRA",
            "FERREIRA",
            "COSTA",
            "RODRIGUES",
            "ALMEIDA",
            "NASCIMENTO",
            "D'ÁVILA",
        ];
        let given = *stream.pick(if woman { &WOMEN } else { &MEN });
        let family = *stream.pick(&FAMILIES);
        let fictional = if woman { "FICTÍCIA" } else { "FICTÍCIO" };
        let mut owner = Self {
            display_name: Some(format!("{given} {fictional} {family} {number:07}")),
            email: stream.chance(700).then(|| format!("pessoa.{number:07}@ficticio.example")),
            phone_number: stream.chance(600).then(|| phone(number)),
            address: stream.chance(550).then(|| address(stream)),
            internal_identification: Some(hex32(seed, number, "internal identification")[..8].to_owned()),
            document: Some(Document { kind: Some("CPF"), number: Some(spelled(cpf, stream)) }),
            deprecated_names: stream.chance(400),
        };
        match stream.below(100) {
            0 => owner.document = None,
            1 => owner.document = Some(Document { kind: Some("CPF"), number: None }),
            2 => owner.document = Some(Document { kind: None, number: owner.document.and_then(|d| d.number) }),
            // Cut short somewhere on its way: no CPF any more.
            3 => owner.document = Some(Document { kind: Some("CPF"), number: Some(cpf[..10].to_owned()) }),
            4..=7 => {
                owner.email = Some(String::new());
                owner.phone_number = Some(String::new());
                owner.address = Some(String::new());
            }
            8 => (owner.display_name, owner.internal_identification) = (None, None),
            _ => {}
        }
        if number == 11 {
            // `vazio`: nothing known but the document.
            owner.display_name = Some(String::new());
            owner.email = Some(String::new());
            owner.phone_number = Some(String::new());
            owner.address = Some(String::new());
            owner.document = Some(Document { kind: Some("CPF"), number: Some(cpf.to_owned()) });
        }
        owner
    }
}

fn spelled(cpf: &str, stream: &mut Stream) -> String {
    match stream.below(3) {
        0 => cpf.to_owned(),
        1 => format!("{}.{}.{}-{}", &cpf[..3], &cpf[3..6], &cpf[6..9], &cpf[9..]),
        _ => format!("{}-{}", &cpf[..9], &cpf[9..]),
    }
}

fn phone(number: u32) -> String {
    // No Brazilian area code is 00.
    format!("+55 00 9{:04}-{:04}", number / 10_000 % 10_000, number % 10_000)
}

fn address(stream: &mut Stream) -> String {
    const PLACES: [&str; 6] = [
        "SÃO FICTÍCIO/SP",
        "NOVA FICÇÃO/MG",
        "FICTOLÂNDIA/BA",
        "VILA IMAGINÁRIA/RS",
        "FÁBULA/PE",
        "PORTO INVENTADO/PA",
    ];
    let house = stream.between(1, 2_500);
    format!("RUA DAS PERSONAGENS {house}, {}", stream.pick(&PLACES))
}
