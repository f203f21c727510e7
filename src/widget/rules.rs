//! The rules of an ask for a widget session, and what such an ask comes to.
//!
//! *Takes* a [`SessionRequest`] and the settings. *Gives* a [`Plan`], or every rule that is broken. *Promises* that no
//! message repeats a value. *Not here*: what contradicts a link that is tracked, which the state knows (`widget.rs`).

use schemars::JsonSchema;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::belvo::token::{Ask, Token};
use crate::config;
use crate::link_id::LinkId;
use crate::resources::{self, Resource};
use crate::sensitive::Cpf;

/// What users connect when nothing else is asked for.
const INSTITUTION: &str = "inss_br_employment";

/// Languages of the widget; the first is what Brazil needs.
const LOCALES: [&str; 3] = ["pt", "es", "en"];

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionRequest {
    /// Our own id of the user: 3 to 256 letters, digits, dashes and underscores, nothing personal.
    pub external_id: String,
    /// `single` or `recurrent`; recurrent when absent.
    #[serde(default)]
    pub access_mode: Option<String>,
    /// Language of the page; `pt` when absent.
    #[serde(default)]
    pub locale: Option<String>,
    /// Names of the institutions that the page offers; the INSS when absent.
    #[serde(default)]
    pub institutions: Option<Vec<String>>,
    /// The link that gets new credentials, instead of a new link.
    #[serde(default)]
    pub link: Option<String>,
    /// What Belvo fetches by itself, such as `EMPLOYMENTS`; every known resource when absent.
    #[serde(default)]
    pub fetch_resources: Option<Vec<String>>,
}

/// One rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Violation {
    /// The field of the request, or the key of the configuration, such as `widget.callback_urls.exit`.
    pub field: String,
    /// What is wrong and what to write. The value itself is not shown.
    pub message: String,
}

/// Checks every rule of `request` that needs no look at what is tracked.
///
/// # Errors
/// Every rule that is broken.
pub fn check(request: &SessionRequest, settings: &config::Widget) -> Result<(), Vec<Violation>> {
    Plan::of(request, settings).map(drop)
}

/// What a request comes to, every rule kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub external_id: String,
    locale: String,
    /// The link to update; what only makes sense for a new one is not used then.
    pub link: Option<LinkId>,
    pub access_mode: &'static str,
    institutions: Vec<String>,
    fetch_resources: Vec<String>,
}

impl Plan {
    /// # Errors
    /// Every broken rule.
    pub(super) fn of(request: &SessionRequest, settings: &config::Widget) -> Result<Self, Vec<Violation>> {
        let mut rules = Rules::default();
        rules.external_id(&request.external_id);
        let link = request.link.as_deref().and_then(|link| rules.link(link));
        let access_mode = rules.access_mode(request.access_mode.as_deref());
        let locale = request.locale.clone().unwrap_or_else(|| LOCALES[0].to_owned());
        rules.ensure(LOCALES.contains(&locale.as_str()), "locale", "is not pt, es or en; INSS needs pt");
        let institutions = request.institutions.clone().unwrap_or_else(|| vec![INSTITUTION.to_owned()]);
        rules.institutions(&institutions);
        let every = || resources::ALL.iter().map(|resource| resource.webhook_type.to_owned()).collect();
        let fetch_resources = request.fetch_resources.clone().unwrap_or_else(every);
        rules.fetch_resources(&fetch_resources);
        if request.link.is_none() {
            rules.widget(settings, access_mode, &fetch_resources);
        }
        if rules.0.is_empty() {
            let external_id = request.external_id.clone();
            Ok(Self { external_id, locale, link, access_mode, institutions, fetch_resources })
        } else {
            Err(rules.0)
        }
    }

    pub(super) fn ask<'a>(&'a self, widget: &'a config::Widget) -> Ask<'a> {
        match &self.link {
            Some(link) => Ask::Update(link),
            None => Ask::Connect { fetch_resources: &self.fetch_resources, widget },
        }
    }

    /// The address of the page. In update mode the token says which link; the rest is the link's own.
    pub(super) fn url(&self, base: &Url, token: &Token) -> Url {
        let mut url = base.clone();
        let mut query = url.query_pairs_mut();
        query.append_pair("access_token", token.access.expose_secret()).append_pair("locale", &self.locale);
        if self.link.is_none() {
            query
                .append_pair("institutions", &self.institutions.join(","))
                .append_pair("access_mode", self.access_mode)
                .append_pair("external_id", &self.external_id);
        }
        drop(query);
        url
    }
}

/// Collects what is wrong.
#[derive(Default)]
pub(super) struct Rules(pub Vec<Violation>);

impl Rules {
    pub(super) fn ensure(&mut self, holds: bool, field: &str, message: &str) {
        if !holds {
            self.0.push(Violation { field: field.to_owned(), message: message.to_owned() });
        }
    }

    fn external_id(&mut self, id: &str) {
        let field = "external_id";
        self.ensure((3..=256).contains(&id.chars().count()), field, "has other than 3 to 256 characters");
        if id.contains('@') {
            self.ensure(false, field, "looks like an e-mail address; write an id that tells nothing of the person");
            return;
        }
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        self.ensure(id.bytes().all(is_allowed), field, "has characters other than A-Z, a-z, 0-9, - and _");
        self.ensure(!holds_cpf(id), field, "holds a CPF; write an id that tells nothing of the person");
    }

    fn link(&mut self, link: &str) -> Option<LinkId> {
        let id = link.parse().ok();
        self.ensure(id.is_some(), "link", "is not a link's id, which is a UUID");
        id
    }

    fn access_mode(&mut self, mode: Option<&str>) -> &'static str {
        let known = ["recurrent", "single"];
        let mode = known.into_iter().find(|known| mode.is_none_or(|mode| mode == *known));
        self.ensure(mode.is_some(), "access_mode", "is neither single nor recurrent");
        mode.unwrap_or(known[0])
    }

    fn institutions(&mut self, names: &[String]) {
        let is_name = |name: &String| {
            (1..=40).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        };
        let holds = !names.is_empty() && names.iter().all(is_name);
        self.ensure(holds, "institutions", "is not a list of institutions' names, such as inss_br_employment");
    }

    fn fetch_resources(&mut self, names: &[String]) {
        let known = resources::ALL.map(|resource: &Resource| resource.webhook_type);
        let holds = names.iter().all(|name| known.contains(&name.as_str()));
        self.ensure(holds, "fetch_resources", &format!("holds something else than {}", known.join(", ")));
    }

    /// What the configuration must have for a new link.
    fn widget(&mut self, settings: &config::Widget, access_mode: &str, fetch_resources: &[String]) {
        let storage = settings.credentials_storage.as_str();
        let is_kept = access_mode != "recurrent" || storage == "store";
        let message =
            "is recurrent, which needs widget.credentials_storage = \"store\"; ask for single, or change the key";
        self.ensure(is_kept, "access_mode", message);
        let is_fetched = storage != "nostore" || !fetch_resources.is_empty();
        let message = "is empty, and with widget.credentials_storage = \"nostore\" nothing could be fetched later";
        self.ensure(is_fetched, "fetch_resources", message);
        let (callbacks, branding) = (&settings.callback_urls, &settings.branding);
        for (name, text) in [
            ("callback_urls.success", &callbacks.success),
            ("callback_urls.exit", &callbacks.exit),
            ("callback_urls.event", &callbacks.event),
            ("branding.company_icon", &branding.company_icon),
            ("branding.company_logo", &branding.company_logo),
            ("branding.company_terms_url", &branding.company_terms_url),
        ] {
            let field = format!("widget.{name}");
            self.ensure(!text.is_empty(), &field, "is missing in the configuration; write a URL");
            // What is written was checked when the configuration was read.
        }
        let field = "widget.branding.company_name";
        self.ensure(!branding.company_name.trim().is_empty(), field, "is missing in the configuration; write a name");
    }
}

/// Whether `id` has the eleven digits of a CPF, in one run or grouped as on paper, with the right check digits.
fn holds_cpf(id: &str) -> bool {
    let runs: Vec<&str> = id.split(|character: char| !character.is_ascii_digit()).collect();
    let is_cpf = |parts: &[&str]| Cpf::parse(&parts.concat()).is_some();
    runs.iter().any(|run| is_cpf(&[run]))
        || runs.windows(2).any(|pair| pair[0].len() == 9 && pair[1].len() == 2 && is_cpf(pair))
        || runs.windows(4).any(|four| four.iter().map(|run| run.len()).eq([3, 3, 3, 2]) && is_cpf(four))
}

pub(super) fn sentence(violations: &[Violation]) -> String {
    violations.iter().map(|wrong| format!("{}: {}", wrong.field, wrong.message)).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::clock::Timestamp;

    const ID: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

    pub(crate) fn settings() -> config::Widget {
        let url = |name: &str| format!("https://acme.example/{name}");
        config::Widget {
            stale_in: "365d".into(),
            credentials_storage: "store".into(),
            callback_urls: config::CallbackUrls {
                success: "acme://success".into(),
                exit: "acme://exit".into(),
                event: "acme://error".into(),
            },
            branding: config::Branding {
                company_icon: url("icon.svg"),
                company_logo: url("logo.svg"),
                company_name: "ACME".into(),
                company_terms_url: url("terms"),
                ..config::Branding::default()
            },
            theme: Vec::new(),
        }
    }

    pub(crate) fn request(external_id: &str) -> SessionRequest {
        SessionRequest { external_id: external_id.into(), ..SessionRequest::default() }
    }

    fn fields(request: &SessionRequest, settings: &config::Widget) -> Vec<String> {
        let violations = Plan::of(request, settings).err().unwrap_or_default();
        violations.into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn an_external_id_keeps_belvos_rules_and_tells_nothing_of_a_person() {
        for right in
            ["abc", "HJLSI-897809", "user_7", &"x".repeat(256), "20261123101", "2f5d361d-dad6-45d4-a0bf-26d479766067"]
        {
            assert_eq!(fields(&request(right), &settings()), Vec::<String>::new(), "{right}");
        }
        for wrong in [
            "",
            "ab",
            &"x".repeat(257),
            "a b c",
            "ação",
            "maria@example.org",
            "99001234500",
            "u99001234500",
            "990-012-345-00",
            "id_990012345-00",
        ] {
            let violations = Plan::of(&request(wrong), &settings()).unwrap_err();
            assert!(violations.iter().all(|violation| violation.field == "external_id"), "{wrong}");
            assert!(wrong.len() < 4 || !format!("{violations:?}").contains(wrong), "{violations:?}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let request = SessionRequest {
            external_id: "x".into(),
            access_mode: Some("double".into()),
            locale: Some("tlh".into()),
            institutions: Some(Vec::new()),
            link: None,
            fetch_resources: Some(vec!["PLANETS".into()]),
        };
        let found = fields(&request, &config::Widget::default());
        let expected = [
            "external_id",
            "access_mode",
            "locale",
            "institutions",
            "fetch_resources",
            "access_mode",
            "widget.callback_urls.success",
            "widget.callback_urls.exit",
            "widget.callback_urls.event",
            "widget.branding.company_icon",
            "widget.branding.company_logo",
            "widget.branding.company_terms_url",
            "widget.branding.company_name",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn how_credentials_are_kept_decides_what_may_be_asked_for() {
        let brief = config::Widget { credentials_storage: "nostore".into(), ..settings() };
        let single = SessionRequest { access_mode: Some("single".into()), ..request("user-1") };
        assert_eq!(fields(&request("user-1"), &brief), ["access_mode"]);
        assert_eq!(fields(&single, &brief), Vec::<String>::new());
        let nothing = SessionRequest { fetch_resources: Some(Vec::new()), ..single };
        assert_eq!(fields(&nothing, &brief), ["fetch_resources"]);
        assert_eq!(fields(&nothing, &settings()), Vec::<String>::new());
        // An update sends none of this.
        let update = SessionRequest { link: Some(ID.into()), ..request("user-1") };
        assert_eq!(fields(&update, &config::Widget::default()), Vec::<String>::new());
    }

    #[test]
    fn the_address_of_the_page_is_encoded() {
        let token =
            || Token { access: "a.b+c/d=&x".into(), refresh: "r".into(), expires_at: Timestamp::from_micros(0) };
        let base: Url = "https://widget.belvo.io/".parse().unwrap();
        let two = Some(vec![INSTITUTION.into(), "other_br_employment".into()]);
        let single =
            SessionRequest { access_mode: Some("single".into()), institutions: two, ..request("HJLSI-897809") };
        assert_eq!(
            Plan::of(&single, &settings()).unwrap().url(&base, &token()).as_str(),
            "https://widget.belvo.io/?access_token=a.b%2Bc%2Fd%3D%26x&locale=pt\
             &institutions=inss_br_employment%2Cother_br_employment&access_mode=single&external_id=HJLSI-897809"
        );
        let update = SessionRequest { link: Some(ID.into()), ..request("user-1") };
        assert_eq!(
            Plan::of(&update, &settings()).unwrap().url(&base, &token()).as_str(),
            "https://widget.belvo.io/?access_token=a.b%2Bc%2Fd%3D%26x&locale=pt"
        );
    }
}
