//! Widget access tokens.
//!
//! *Takes* what a user's session is to be. *Gives* a [`Token`], good for one user and ten minutes. *Promises* that the
//! keys travel in the body alone, to `belvo.token_url`, and that a token is printed by nobody who does not ask for its
//! text. *Not here*: the rules that an ask keeps, and the widget's address.

use std::fmt;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::Call;
use super::{Class, Client, Code, Failure, Leave, Patience};
use crate::clock::Timestamp;
use crate::config;
use crate::link_id::LinkId;

const PATH: &str = "/api/token/";

/// How long a token is good, unless its user connects earlier.
const LASTS: Duration = Duration::from_mins(10);

/// What a token lets its user do.
#[derive(Debug, Clone, Copy)]
pub enum Ask<'a> {
    /// Make a link, with what the configuration says of the widget.
    Connect {
        /// What Belvo fetches by itself, in its spelling, such as `EMPLOYMENTS`.
        fetch_resources: &'a [String],
        /// The rest.
        widget: &'a config::Widget,
    },
    /// Give this link new credentials or a new token of the institution.
    Update(&'a LinkId),
}

/// A widget token. Its debug form shows nothing.
pub struct Token {
    /// What the widget is opened with.
    pub access: SecretString,
    /// What Belvo gives along.
    pub refresh: SecretString,
    /// When it ends, by our clock: counted from when the call left, so that it is never later than Belvo's.
    pub expires_at: Timestamp,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Asks for a token. A user waits for it, so that the call may use the reserve of the budget.
///
/// # Errors
/// A [`Failure`].
pub async fn create(client: &Client, ask: Ask<'_>) -> Result<Token, Failure> {
    let settings = client.settings();
    let keys = (settings.secret_id.expose_secret(), settings.secret_password.expose_secret());
    let call = Call { is_for_token: true, ..Call::post(PATH, &body(ask, keys), &[200, 201]) };
    let answer = client.call(&call, Leave::of(Class::Urgent).waiting(Patience::Short)).await?;
    let Ok(Wire { access, refresh }) = serde_json::from_slice(&answer.body) else {
        return Err(Failure::own(Code::NotJson, PATH).with_method("POST").with_status(200));
    };
    Ok(Token { access: access.into(), refresh: refresh.into(), expires_at: answer.started_at + LASTS })
}

fn body(ask: Ask<'_>, (id, password): (&str, &str)) -> Value {
    match ask {
        // The link has the rest. Belvo overlooks the name `link`.
        Ask::Update(link_id) => json!({
            "id": id,
            "password": password,
            "scopes": "read_institutions,write_links,read_links",
            "link_id": link_id.as_str(),
        }),
        Ask::Connect { fetch_resources, widget } => {
            let callbacks = &widget.callback_urls;
            let theme = widget.theme.iter().map(|(key, value)| json!({ "css_key": key, "value": value }));
            json!({
                "id": id,
                "password": password,
                "scopes": "read_institutions,write_links",
                "stale_in": widget.stale_in,
                "credentials_storage": widget.credentials_storage,
                "fetch_resources": fetch_resources,
                "widget": {
                    "callback_urls": {
                        "success": callbacks.success,
                        "exit": callbacks.exit,
                        "event": callbacks.event,
                    },
                    "branding": branding(&widget.branding),
                    "theme": theme.collect::<Vec<_>>(),
                },
            })
        }
    }
}

fn branding(branding: &config::Branding) -> Value {
    let texts = [
        ("company_icon", &branding.company_icon),
        ("company_logo", &branding.company_logo),
        ("company_name", &branding.company_name),
        ("company_terms_url", &branding.company_terms_url),
        ("company_terms_version", &branding.company_terms_version),
        ("overlay_background_color", &branding.overlay_background_color),
    ];
    let written = texts.into_iter().filter(|(_, text)| !text.is_empty());
    let mut body: Map<String, Value> = written.map(|(name, text)| (name.to_owned(), text.as_str().into())).collect();
    body.insert("social_proof".to_owned(), branding.social_proof.into());
    Value::Object(body)
}

#[derive(Deserialize)]
struct Wire {
    access: String,
    refresh: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::belvo::scripted::{self, Script};

    fn widget() -> config::Widget {
        config::Widget {
            stale_in: "365d".into(),
            credentials_storage: "store".into(),
            callback_urls: config::CallbackUrls {
                success: "myapp://success".into(),
                exit: "myapp://exit".into(),
                event: "myapp://error".into(),
            },
            branding: config::Branding {
                company_icon: "https://mysite.example/icon.svg".into(),
                company_logo: "https://mysite.example/logo.svg".into(),
                company_name: "ACME".into(),
                company_terms_url: "https://mysite.example/terms/".into(),
                company_terms_version: "20260323".into(),
                overlay_background_color: "#F0F2F4".into(),
                social_proof: true,
            },
            theme: vec![("--color-primary-base".into(), "#907AD6".into())],
        }
    }

    #[test]
    fn a_token_for_a_new_link_is_asked_for_with_every_parameter() {
        let fetch_resources = ["EMPLOYMENTS".to_owned(), "OWNERS".to_owned()];
        let widget = widget();
        let ask = Ask::Connect { fetch_resources: &fetch_resources, widget: &widget };
        let expected = json!({
            "id": "id", "password": "password", "scopes": "read_institutions,write_links",
            "stale_in": "365d", "credentials_storage": "store", "fetch_resources": ["EMPLOYMENTS", "OWNERS"],
            "widget": {
                "callback_urls": { "success": "myapp://success", "exit": "myapp://exit", "event": "myapp://error" },
                "branding": {
                    "company_icon": "https://mysite.example/icon.svg", "company_logo": "https://mysite.example/logo.svg",
                    "company_name": "ACME", "company_terms_url": "https://mysite.example/terms/",
                    "company_terms_version": "20260323", "overlay_background_color": "#F0F2F4", "social_proof": true,
                },
                "theme": [{ "css_key": "--color-primary-base", "value": "#907AD6" }],
            },
        });
        assert_eq!(body(ask, ("id", "password")), expected);
    }

    #[test]
    fn a_token_for_an_update_names_the_link_and_may_read_links() {
        let link: LinkId = "2f5d361d-dad6-45d4-a0bf-26d479766067".parse().unwrap();
        let expected = json!({
            "id": "id", "password": "password", "scopes": "read_institutions,write_links,read_links",
            "link_id": "2f5d361d-dad6-45d4-a0bf-26d479766067",
        });
        assert_eq!(body(Ask::Update(&link), ("id", "password")), expected);
    }

    #[tokio::test]
    async fn the_keys_are_not_in_the_head_and_the_token_is_not_in_its_debug_form() {
        let script = Script::start(|_| scripted::json(200, r#"{"access":"aaa.bbb.ccc","refresh":"ddd"}"#)).await;
        let link: LinkId = "2f5d361d-dad6-45d4-a0bf-26d479766067".parse().unwrap();
        let token = create(&script.client(), Ask::Update(&link)).await.unwrap();
        assert_eq!((token.access.expose_secret(), token.refresh.expose_secret()), ("aaa.bbb.ccc", "ddd"));
        assert_eq!(format!("{token:?}"), "Token(…)");
        let head = script.requests().remove(0).to_ascii_lowercase();
        assert!(head.starts_with("post /api/token/ http/1.1\r\n"), "{head}");
        assert!(!head.contains("authorization"), "{head}");
    }

    #[tokio::test]
    async fn what_is_no_token_fails_without_showing_it() {
        let script = Script::start(|_| scripted::json(200, r#"{"access":7,"secret":"canary"}"#)).await;
        let link: LinkId = "2f5d361d-dad6-45d4-a0bf-26d479766067".parse().unwrap();
        let failure = create(&script.client(), Ask::Update(&link)).await.unwrap_err();
        assert_eq!(failure.code, Code::NotJson);
        assert!(!format!("{failure} {failure:?}").contains("canary"));
    }
}
