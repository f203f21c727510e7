//! Employers, what they do, and what people do for them, in the register's spelling.

use super::documents;
use crate::simulate::random::Stream;

/// Branches of the economy, as far as lives differ by them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sector {
    /// Farms.
    Farming,
    /// Manufacturing.
    Industry,
    /// Building.
    Construction,
    /// Shops and wholesale.
    Commerce,
    /// Everything else in private hands.
    Services,
    /// Municipal and state offices.
    Public,
    /// Somebody's home.
    Household,
}

impl Sector {
    /// A sector by its share of formal jobs.
    pub(crate) fn draw(stream: &mut Stream) -> Self {
        *stream.weighted(&[
            (18, Self::Farming),
            (79, Self::Industry),
            (28, Self::Construction),
            (102, Self::Commerce),
            (195, Self::Services),
            (20, Self::Public),
            (15, Self::Household),
        ])
    }
}

/// An employer as one record names it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Employer {
    /// Name.
    pub name: Option<String>,
    /// The code as sent.
    pub code: Option<String>,
}

/// How an employer code is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CodeForm {
    /// Eight characters of the CNPJ.
    Root,
    /// The whole CNPJ of a branch.
    Full,
    /// Twelve digits.
    Works,
    /// A person: eleven digits.
    Person,
    /// Fourteen digits that are no CNPJ.
    Rural,
    /// None.
    Missing,
}

impl CodeForm {
    /// A form that fits `sector`.
    pub(crate) fn draw(stream: &mut Stream, sector: Sector) -> Self {
        match sector {
            Sector::Household => Self::Person,
            Sector::Farming => {
                *stream.weighted(&[(30, Self::Full), (30, Self::Works), (20, Self::Rural), (20, Self::Person)])
            }
            Sector::Construction => *stream.weighted(&[(50, Self::Full), (30, Self::Root), (20, Self::Works)]),
            _ => *stream.weighted(&[(500, Self::Full), (480, Self::Root), (8, Self::Missing), (12, Self::Person)]),
        }
    }
}

impl Employer {
    /// Employer `number`, its code in `form`, at its branch `branch`.
    pub(crate) fn of(number: u32, form: CodeForm, branch: u32) -> Self {
        let root = documents::cnpj_root(number);
        let code = match form {
            CodeForm::Root => Some(root),
            CodeForm::Full => Some(documents::cnpj(&root, branch)),
            CodeForm::Works => Some(format!("99{number:08}18")),
            // Persons of the simulation have smaller numbers than the persons who employ them.
            CodeForm::Person => Some(documents::cpf(9_000_000 + number % 1_000_000)),
            CodeForm::Rural => Some(not_a_cnpj(&format!("99{number:010}"))),
            CodeForm::Missing => None,
        };
        let name = match form {
            CodeForm::Person => format!("EMPREGADOR FICTÍCIO {number:05}"),
            CodeForm::Rural => format!("FAZENDA FICTÍCIA {number:05}"),
            CodeForm::Works => format!("MATRÍCULA FICTÍCIA {number:05}"),
            _ => format!(
                "EMPRESA FICTÍCIA {number:05} {}",
                ["LTDA", "S.A.", "ME", "EIRELI & FILHOS"][number as usize % 4]
            ),
        };
        Self { name: Some(name), code }
    }
}

fn not_a_cnpj(body: &str) -> String {
    let right = documents::cnpj(&body[..8], body[8..].parse().expect("four digits"));
    let last = right.as_bytes()[13] - b'0';
    format!("{}{}", &right[..13], (last + 1) % 10)
}

/// What an employer does.
#[derive(Clone)]
pub(crate) struct Activity {
    /// The text on the wire.
    pub text: String,
    /// The five digits of the CNAE class, if the text holds them.
    pub class: Option<&'static str>,
    /// The CNAE section, if the text holds a class.
    pub section: Option<&'static str>,
}

impl Activity {
    /// An activity of `sector`, in one of Belvo's spellings; none where the register has none.
    pub(crate) fn draw(stream: &mut Stream, sector: Sector) -> Option<Self> {
        let entries: Vec<_> = ACTIVITIES.iter().filter(|entry| entry.0 == sector).collect();
        let &&(_, class, section, label) = stream.pick(&entries);
        match stream.below(100) {
            0..=1 => None,
            2..=4 => Some(Self { text: label.to_owned(), class: None, section: None }),
            form => Some(Self::spelled(class, section, label, form)),
        }
    }

    /// The activity of `class` (five digits) in the usual spelling.
    ///
    /// # Panics
    /// When the simulator does not know the class.
    pub(crate) fn usual(class: &str) -> Self {
        let entry = ACTIVITIES.iter().find(|entry| entry.1 == class).expect("a class of the table");
        Self::spelled(entry.1, entry.2, entry.3, 99)
    }

    fn spelled(class: &'static str, section: &'static str, label: &str, form: u32) -> Self {
        let (group, digit) = class.split_at(4);
        let code = match form {
            5..=12 => format!("{group}-{digit}/00"),
            13..=18 => format!("{group}{digit}00"),
            19..=24 => format!("{}.{}-{digit}", &group[..2], &group[2..]),
            25..=28 => format!("{}.{}-{digit}-01", &group[..2], &group[2..]),
            _ => format!("{group}-{digit}"),
        };
        Self { text: format!("{code} - {label}"), class: Some(class), section: Some(section) }
    }
}

/// Sector, CNAE class, section, label.
const ACTIVITIES: &[(Sector, &str, &str, &str)] = &[
    (Sector::Farming, "01113", "A", "CULTIVO DE CEREAIS"),
    (Sector::Farming, "01130", "A", "CULTIVO DE CANA-DE-AÇÚCAR"),
    (Sector::Farming, "01342", "A", "CULTIVO DE CAFÉ"),
    (Sector::Farming, "01512", "A", "CRIAÇÃO DE BOVINOS"),
    (Sector::Farming, "02101", "A", "PRODUÇÃO FLORESTAL - FLORESTAS PLANTADAS"),
    (Sector::Industry, "08100", "B", "EXTRAÇÃO DE PEDRA, AREIA E ARGILA"),
    (Sector::Industry, "10112", "C", "ABATE DE RESES, EXCETO SUÍNOS"),
    (Sector::Industry, "10911", "C", "FABRICAÇÃO DE PRODUTOS DE PANIFICAÇÃO"),
    (Sector::Industry, "14126", "C", "CONFECÇÃO DE PEÇAS DO VESTUÁRIO"),
    (Sector::Industry, "15319", "C", "FABRICAÇÃO DE CALÇADOS DE COURO"),
    (Sector::Industry, "25110", "C", "FABRICAÇÃO DE ESTRUTURAS METÁLICAS"),
    (Sector::Industry, "29107", "C", "FABRICAÇÃO DE AUTOMÓVEIS, CAMIONETAS E UTILITÁRIOS"),
    (Sector::Industry, "31012", "C", "FABRICAÇÃO DE MÓVEIS COM PREDOMINÂNCIA DE MADEIRA"),
    (Sector::Industry, "35140", "D", "DISTRIBUIÇÃO DE ENERGIA ELÉTRICA"),
    (Sector::Industry, "38114", "E", "COLETA DE RESÍDUOS NÃO-PERIGOSOS"),
    (Sector::Construction, "41204", "F", "CONSTRUÇÃO DE EDIFÍCIOS"),
    (Sector::Construction, "42111", "F", "CONSTRUÇÃO DE RODOVIAS E FERROVIAS"),
    (Sector::Construction, "43215", "F", "INSTALAÇÕES ELÉTRICAS"),
    (Sector::Commerce, "45307", "G", "COMÉRCIO DE PEÇAS E ACESSÓRIOS PARA VEÍCULOS"),
    (Sector::Commerce, "46915", "G", "COMÉRCIO ATACADISTA DE MERCADORIAS EM GERAL"),
    (Sector::Commerce, "47113", "G", "COMÉRCIO VAREJISTA DE MERCADORIAS EM GERAL - SUPERMERCADOS"),
    (Sector::Commerce, "47717", "G", "COMÉRCIO VAREJISTA DE PRODUTOS FARMACÊUTICOS"),
    (Sector::Commerce, "47814", "G", "COMÉRCIO VAREJISTA DE ARTIGOS DO VESTUÁRIO"),
    (Sector::Services, "49302", "H", "TRANSPORTE RODOVIÁRIO DE CARGA"),
    (Sector::Services, "49213", "H", "TRANSPORTE COLETIVO DE PASSAGEIROS"),
    (Sector::Services, "55108", "I", "HOTÉIS E SIMILARES"),
    (Sector::Services, "56112", "I", "RESTAURANTES E OUTROS SERVIÇOS DE ALIMENTAÇÃO"),
    (Sector::Services, "61108", "J", "TELECOMUNICAÇÕES POR FIO"),
    (Sector::Services, "62015", "J", "DESENVOLVIMENTO DE PROGRAMAS DE COMPUTADOR SOB ENCOMENDA"),
    (Sector::Services, "64212", "K", "BANCOS COMERCIAIS"),
    (Sector::Services, "68226", "L", "GESTÃO E ADMINISTRAÇÃO DA PROPRIEDADE IMOBILIÁRIA"),
    (Sector::Services, "69206", "M", "ATIVIDADES DE CONTABILIDADE"),
    (Sector::Services, "78205", "N", "LOCAÇÃO DE MÃO-DE-OBRA TEMPORÁRIA"),
    (Sector::Services, "80111", "N", "ATIVIDADES DE VIGILÂNCIA E SEGURANÇA PRIVADA"),
    (Sector::Services, "81214", "N", "LIMPEZA EM PRÉDIOS E EM DOMICÍLIOS"),
    (Sector::Services, "82202", "N", "ATIVIDADES DE TELEATENDIMENTO"),
    (Sector::Services, "85139", "P", "ENSINO FUNDAMENTAL"),
    (Sector::Services, "86101", "Q", "ATIVIDADES DE ATENDIMENTO HOSPITALAR"),
    (Sector::Services, "93131", "R", "ATIVIDADES DE CONDICIONAMENTO FÍSICO"),
    (Sector::Services, "96025", "S", "CABELEIREIROS E OUTRAS ATIVIDADES DE BELEZA"),
    (Sector::Public, "84116", "O", "ADMINISTRAÇÃO PÚBLICA EM GERAL"),
    (Sector::Public, "84248", "O", "SEGURANÇA E ORDEM PÚBLICA"),
    (Sector::Household, "97005", "T", "SERVIÇOS DOMÉSTICOS"),
];

/// An occupation's title, its code, and how both are written.
#[derive(Clone)]
pub(crate) struct Title {
    /// The CBO's words.
    pub words: &'static str,
    /// `occupations[].name` as sent; none where the register has none.
    pub name: Option<String>,
    /// The six digits of the CBO code, if the name ends in them.
    pub code: Option<&'static str>,
}

impl Title {
    /// The occupation `trade`, in one of the spellings.
    pub(crate) fn draw(stream: &mut Stream, trade: &Trade) -> Self {
        match stream.below(100) {
            0..=11 => Self { words: trade.title, name: Some(trade.title.to_owned()), code: None },
            12..=13 => Self { words: trade.title, name: None, code: None },
            14..=19 => Self {
                words: trade.title,
                name: Some(format!("{} - {}", trade.title, trade.code)),
                code: Some(trade.code),
            },
            _ => Self::usual(trade),
        }
    }

    /// In the usual spelling, `TITLE - 2525-40`.
    pub(crate) fn usual(trade: &Trade) -> Self {
        let name = format!("{} - {}-{}", trade.title, &trade.code[..4], &trade.code[4..]);
        Self { words: trade.title, name: Some(name), code: Some(trade.code) }
    }
}

/// What somebody can work as.
pub(crate) struct Trade {
    /// Where.
    pub sector: Sector,
    /// How many of the sector's jobs, relative to the others.
    weight: u32,
    /// Six digits of the CBO.
    pub code: &'static str,
    /// The CBO's title.
    pub title: &'static str,
    /// Median pay at hire, in thousandths of the minimum wage.
    pub level: i64,
}

impl Trade {
    /// A trade of `sector`.
    pub(crate) fn draw(stream: &mut Stream, sector: Sector) -> &'static Self {
        let trades: Vec<(u32, &'static Self)> =
            TRADES.iter().filter(|t| t.sector == sector).map(|t| (t.weight, t)).collect();
        stream.weighted::<&'static Self>(&trades)
    }

    /// What somebody of this trade is promoted to: a better paid one of the branch, or the same.
    pub(crate) fn next(&'static self, stream: &mut Stream) -> &'static Self {
        let better = |trade: &&Self| {
            trade.sector == self.sector && (self.level + 1..=self.level * 17 / 10).contains(&trade.level)
        };
        let better: Vec<&'static Self> = TRADES.iter().filter(better).collect();
        if better.is_empty() || stream.chance(400) { self } else { stream.pick::<&'static Self>(&better) }
    }

    /// The trade with `code`.
    ///
    /// # Panics
    /// When the simulator does not know the code.
    pub(crate) fn of(code: &str) -> &'static Self {
        TRADES.iter().find(|trade| trade.code == code).expect("a code of the table")
    }
}

const fn trade(sector: Sector, weight: u32, code: &'static str, title: &'static str, level: i64) -> Trade {
    Trade { sector, weight, code, title, level }
}

const TRADES: &[Trade] = &[
    trade(Sector::Farming, 60, "622020", "TRABALHADOR VOLANTE DA AGRICULTURA", 1_050),
    trade(Sector::Farming, 25, "623110", "TRABALHADOR DA PECUÁRIA", 1_100),
    trade(Sector::Farming, 15, "641015", "TRATORISTA AGRÍCOLA", 1_350),
    trade(Sector::Industry, 45, "784205", "ALIMENTADOR DE LINHA DE PRODUÇÃO", 1_120),
    trade(Sector::Industry, 15, "763210", "COSTUREIRO NA CONFECÇÃO EM SÉRIE", 1_080),
    trade(Sector::Industry, 12, "724315", "SOLDADOR", 1_600),
    trade(Sector::Industry, 12, "911305", "MECÂNICO DE MANUTENÇÃO DE MÁQUINAS", 1_750),
    trade(Sector::Industry, 10, "311105", "TÉCNICO QUÍMICO", 2_000),
    trade(Sector::Industry, 4, "214405", "ENGENHEIRO MECÂNICO", 4_400),
    trade(Sector::Industry, 2, "141205", "GERENTE DE PRODUÇÃO E OPERAÇÕES", 4_800),
    trade(Sector::Construction, 55, "717020", "SERVENTE DE OBRAS", 1_120),
    trade(Sector::Construction, 25, "715210", "PEDREIRO", 1_450),
    trade(Sector::Construction, 12, "715615", "ELETRICISTA DE INSTALAÇÕES", 1_550),
    trade(Sector::Construction, 5, "312105", "TÉCNICO DE OBRAS CIVIS", 1_900),
    trade(Sector::Construction, 3, "214205", "ENGENHEIRO CIVIL", 4_600),
    trade(Sector::Commerce, 45, "521110", "VENDEDOR DE COMÉRCIO VAREJISTA", 1_110),
    trade(Sector::Commerce, 25, "421125", "OPERADOR DE CAIXA", 1_060),
    trade(Sector::Commerce, 15, "521125", "REPOSITOR DE MERCADORIAS", 1_050),
    trade(Sector::Commerce, 8, "411010", "ASSISTENTE ADMINISTRATIVO", 1_250),
    trade(Sector::Commerce, 5, "354125", "ASSISTENTE DE VENDAS", 1_500),
    trade(Sector::Commerce, 2, "141415", "GERENTE DE LOJA E SUPERMERCADO", 2_700),
    trade(Sector::Services, 18, "411005", "AUXILIAR DE ESCRITÓRIO", 1_120),
    trade(Sector::Services, 16, "514320", "FAXINEIRO", 1_040),
    trade(Sector::Services, 12, "513405", "GARÇOM", 1_080),
    trade(Sector::Services, 10, "517330", "VIGILANTE", 1_350),
    trade(Sector::Services, 10, "422310", "OPERADOR DE TELEMARKETING", 1_020),
    trade(Sector::Services, 10, "782510", "MOTORISTA DE CAMINHÃO", 1_550),
    trade(Sector::Services, 8, "322205", "TÉCNICO DE ENFERMAGEM", 1_650),
    trade(Sector::Services, 5, "231210", "PROFESSOR DE NÍVEL SUPERIOR DO ENSINO FUNDAMENTAL", 2_300),
    trade(Sector::Services, 4, "212405", "ANALISTA DE DESENVOLVIMENTO DE SISTEMAS", 3_300),
    trade(Sector::Services, 3, "252540", "ANALISTA DE PRODUTOS BANCÁRIOS", 3_000),
    trade(Sector::Services, 3, "223505", "ENFERMEIRO", 2_900),
    trade(Sector::Services, 1, "123105", "DIRETOR ADMINISTRATIVO", 6_500),
    trade(Sector::Public, 60, "411010", "ASSISTENTE ADMINISTRATIVO", 1_400),
    trade(Sector::Public, 40, "517215", "GUARDA-CIVIL MUNICIPAL", 1_700),
    trade(Sector::Household, 70, "512105", "EMPREGADO DOMÉSTICO NOS SERVIÇOS GERAIS", 1_030),
    trade(Sector::Household, 30, "516210", "CUIDADOR DE IDOSOS", 1_150),
];

/// A place of duty, as the register says it.
pub(crate) fn locale(stream: &mut Stream, sector: Sector) -> Option<&'static str> {
    let urban = if sector == Sector::Farming { 10 } else { 85 };
    *stream.weighted(&[(urban, Some("Urbana")), (90 - urban, Some("Rural")), (5, Some("Não Identificado")), (5, None)])
}
