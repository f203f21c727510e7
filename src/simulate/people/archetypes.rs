//! Persons 0 to 15 of every world: one for each kind of life that a program must get right.

use super::career::{HORIZON, Plan, Register, Rule, plain};
use super::work::{CodeForm, Employer, Sector};
use crate::simulate::calendar::date;

/// The archetypes' names, by person number.
pub const NAMES: [&str; 16] = [
    "estavel",
    "demitido_recente",
    "sazonal_rural",
    "dois_empregos",
    "teto",
    "domestica",
    "servidor_municipal",
    "jovem_aprendiz",
    "zumbi",
    "facultativo",
    "aposentado_ativo",
    "vazio",
    "historico_longo",
    "corrigido",
    "duplicado",
    "recontratado",
];

/// The jobs of the archetype `number`; none for everybody from 16 on.
#[allow(clippy::too_many_lines, reason = "a list of lives, one after the other")]
pub(crate) fn plans(seed: u64, number: u32) -> Option<Vec<Plan>> {
    let name = NAMES.get(number as usize)?;
    let offset = u32::try_from(seed % 500).expect("below 500");
    let company = |n: u32, form| Employer::of(100 * (n + offset), form, 1);
    let nobody = |name: &str| Employer { name: Some(name.to_owned()), code: None };
    Some(match *name {
        "estavel" => vec![plain(Sector::Industry, company(1, CodeForm::Full), "29107", "911305", (2014, 3, 3), 1_900)],
        "demitido_recente" => vec![
            ended(
                plain(Sector::Commerce, company(2, CodeForm::Root), "47814", "521110", (2019, 6, 10), 1_150),
                (2021, 2, 26),
            ),
            ended(
                plain(Sector::Commerce, company(3, CodeForm::Full), "47113", "421125", (2021, 8, 2), 1_200),
                (2026, 9, 18),
            ),
        ],
        // The same farm, from March to August, every year.
        "sazonal_rural" => (2016..=HORIZON.year())
            .map(|year| {
                let farm = company(4, CodeForm::Works);
                ended(plain(Sector::Farming, farm, "01342", "622020", (year, 3, 2), 1_050), (year, 8, 31))
            })
            .collect(),
        "dois_empregos" => vec![
            plain(Sector::Services, company(5, CodeForm::Full), "86101", "223505", (2018, 4, 2), 2_900),
            plain(Sector::Services, company(6, CodeForm::Root), "86101", "322205", (2022, 1, 17), 2_100),
        ],
        "teto" => vec![Plan {
            rule: Rule::Capped,
            ..plain(Sector::Services, company(7, CodeForm::Full), "62015", "123105", (2015, 5, 4), 9_000)
        }],
        "domestica" => vec![
            ended(
                plain(Sector::Household, company(8, CodeForm::Person), "97005", "512105", (2013, 7, 1), 1_020),
                (2020, 4, 30),
            ),
            plain(Sector::Household, company(9, CodeForm::Person), "97005", "512105", (2020, 11, 3), 1_040),
        ],
        "servidor_municipal" => {
            vec![plain(Sector::Public, company(10, CodeForm::Full), "84116", "517215", (2010, 2, 1), 1_800)]
        }
        "jovem_aprendiz" => vec![Plan {
            rule: Rule::Apprentice,
            ..plain(Sector::Commerce, company(11, CodeForm::Root), "47113", "411005", (2025, 11, 3), 550)
        }],
        "zumbi" => vec![
            Plan {
                register: Register::NeverClosed,
                ..ended(
                    plain(Sector::Construction, company(12, CodeForm::Works), "41204", "717020", (2011, 5, 16), 1_150),
                    (2014, 11, 28),
                )
            },
            plain(Sector::Services, company(13, CodeForm::Root), "80111", "517330", (2023, 9, 1), 1_350),
        ],
        "facultativo" => vec![Plan {
            rule: Rule::Voluntary,
            activity: None,
            ..plain(Sector::Services, nobody("CONTRIBUINTE FACULTATIVO"), "69206", "411010", (2021, 1, 1), 1_000)
        }],
        "aposentado_ativo" => vec![
            plain(Sector::Services, company(14, CodeForm::Full), "49302", "782510", (2009, 8, 3), 1_700),
            Plan {
                rule: Rule::Benefit,
                activity: None,
                ..plain(Sector::Services, nobody("APOSENTADORIA POR IDADE"), "69206", "411010", (2024, 2, 1), 1_450)
            },
        ],
        "vazio" => Vec::new(),
        "historico_longo" => vec![
            ended(
                plain(Sector::Industry, company(15, CodeForm::Full), "25110", "784205", (1976, 2, 2), 1_300),
                (1988, 12, 30),
            ),
            ended(
                plain(Sector::Industry, company(16, CodeForm::Full), "25110", "724315", (1989, 3, 1), 1_900),
                (2003, 6, 30),
            ),
            ended(
                plain(Sector::Industry, company(17, CodeForm::Root), "31012", "911305", (2003, 9, 15), 2_000),
                (2018, 3, 9),
            ),
            plain(Sector::Services, company(18, CodeForm::Root), "81214", "514320", (2019, 1, 7), 1_250),
        ],
        "corrigido" => vec![
            Plan {
                register: Register::Corrected,
                ..ended(
                    plain(Sector::Services, company(19, CodeForm::Root), "82202", "422310", (2022, 5, 9), 1_100),
                    (2026, 11, 30),
                )
            },
            ended(
                plain(Sector::Commerce, company(20, CodeForm::Full), "46915", "411010", (2017, 2, 6), 1_300),
                (2022, 1, 31),
            ),
            plain(Sector::Commerce, company(21, CodeForm::Full), "45307", "354125", (2025, 8, 4), 1_500),
        ],
        // One job that two systems sent: the old record was never closed, so only the end tells the two apart.
        "duplicado" => {
            let twin = || {
                ended(
                    plain(Sector::Commerce, company(22, CodeForm::Root), "47717", "421125", (2020, 10, 1), 1_100),
                    (2024, 7, 15),
                )
            };
            vec![
                Plan { register: Register::Repeating, ..twin() },
                Plan { register: Register::Twin, ..twin() },
                plain(Sector::Commerce, company(23, CodeForm::Full), "47717", "521110", (2024, 10, 7), 1_250),
            ]
        }
        "recontratado" => vec![
            ended(
                plain(Sector::Services, company(24, CodeForm::Full), "56112", "513405", (2018, 1, 15), 1_080),
                (2020, 5, 4),
            ),
            ended(
                plain(Sector::Services, company(24, CodeForm::Full), "56112", "513405", (2021, 3, 1), 1_100),
                (2024, 12, 20),
            ),
            plain(Sector::Services, company(24, CodeForm::Root), "56112", "513405", (2025, 6, 2), 1_200),
        ],
        other => unreachable!("archetype {other} has no life"),
    })
}

fn ended(plan: Plan, (year, month, day): (i32, u32, u32)) -> Plan {
    Plan { end: Some(date(year, month, day)), ..plan }
}
