//! From settings to sections: every rule that a value must keep, and those between values.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytesize::ByteSize;
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use ipnet::IpNet;

use super::reader::{Reader, listed};
use super::{
    Admin, Belvo, Branding, Budget, CallbackUrls, Features, Keep, Lake, LakeForm, Needs, Pii, Retention, SECRET_LEN,
    State, Webhook, Widget,
};
use crate::database;
use crate::reference::Reference;

/// What Belvo allows each source IP, in any window of [`BELVO_WINDOW`].
const BELVO_LIMIT: u128 = 80;
const BELVO_WINDOW: Duration = Duration::from_secs(30);

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const YEAR: Duration = Duration::from_hours(366 * 24);

pub(super) fn belvo(read: &mut Reader<'_>, needs: Needs) -> Belvo {
    let base_url = read.url("belvo.base_url");
    let (token_url, widget_url) = (read.url("belvo.token_url"), read.url("belvo.widget_url"));
    for (key, url) in [("belvo.base_url", &base_url), ("belvo.token_url", &token_url)] {
        if url.path() != "/" {
            read.refuse(key, "has a path", "write scheme and host only, such as https://api.belvo.com");
        }
    }
    let allows_http = read.flag("belvo.allow_http");
    let is_trusted = allows_http || is_loopback(&base_url);
    for (key, url, what) in [
        ("belvo.base_url", &base_url, "would send the secrets over plain http:// to another machine"),
        ("belvo.token_url", &token_url, "would send the secrets over plain http:// to another machine"),
        ("belvo.widget_url", &widget_url, "would send tokens over plain http:// to another machine"),
    ] {
        if url.scheme() != "https" && !allows_http && !is_loopback(url) {
            read.refuse(key, what, "write https://, or allow_http = true if the way there is safe");
        }
    }
    let secret_id = read.secret("belvo.secret_id");
    let secret_password = read.secret("belvo.secret_password");
    for (key, secret) in [("belvo.secret_id", &secret_id), ("belvo.secret_password", &secret_password)] {
        if secret.is_none() && needs.belvo {
            let fix =
                format!("write the one of Belvo's dashboard, or set {} or {key}_file", super::layers::variable(key));
            read.refuse(key, "is missing", fix);
        }
    }
    Belvo {
        base_url,
        token_url,
        widget_url,
        secret_id: secret_id.unwrap_or_default(),
        secret_password: secret_password.unwrap_or_default(),
        page_size: read.whole("belvo.page_size", 1..=1000),
        budget: budget(read, is_trusted),
        reserve: read.share("belvo.reserve"),
        workers: read.whole("belvo.workers", 1..=1024) as usize,
        connect_timeout: read.duration("belvo.connect_timeout", MILLISECOND..=10 * 60 * SECOND),
        idle_timeout: read.duration("belvo.idle_timeout", MILLISECOND..=HOUR),
        total_timeout: read.duration("belvo.total_timeout", MILLISECOND..=HOUR),
        max_body: read.size("belvo.max_body", ByteSize::kib(1)..=ByteSize::gib(4)),
        confirm_after: read.duration("belvo.confirm_after", MILLISECOND..=YEAR),
    }
}

fn budget(read: &mut Reader<'_>, is_trusted: bool) -> Budget {
    let requests = read.whole("belvo.budget.requests", 1..=1_000_000);
    let per = read.duration("belvo.budget.per", MILLISECOND..=DAY);
    // The most that can fall into one of Belvo's windows.
    let windows = BELVO_WINDOW.as_nanos().div_ceil(per.as_nanos().max(1));
    if u128::from(requests) * windows > BELVO_LIMIT && !is_trusted {
        let what = format!(
            "{requests} in {} can be more than {BELVO_LIMIT} in 30 s, which Belvo blocks",
            humantime::format_duration(per)
        );
        read.refuse("belvo.budget.requests", what, "the default is 75 in 30s");
    }
    Budget { requests, per }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

pub(super) fn widget(read: &mut Reader<'_>) -> Widget {
    let mut callback = |name: &str| {
        let expected = "a URL, such as https://app.example/success or myapp://success, or \"\"";
        read.text(&format!("widget.callback_urls.{name}"), expected, is_url_or_empty)
    };
    let callback_urls = CallbackUrls { success: callback("success"), exit: callback("exit"), event: callback("event") };
    let mut address =
        |name: &str| read.text(&format!("widget.branding.{name}"), "an https:// URL or \"\"", is_web_or_empty);
    let (company_icon, company_logo) = (address("company_icon"), address("company_logo"));
    let company_terms_url = address("company_terms_url");
    Widget {
        stale_in: read.text("widget.stale_in", "a number of days, 1d to 999d", |text| is_days(text, 999)),
        credentials_storage: read.text(
            "widget.credentials_storage",
            "store, nostore or a number of days, 1d to 365d",
            |text| matches!(text, "store" | "nostore") || is_days(text, 365),
        ),
        callback_urls,
        branding: Branding {
            company_icon,
            company_logo,
            company_name: read.text("widget.branding.company_name", "a text", |_| true),
            company_terms_url,
            company_terms_version: read.text("widget.branding.company_terms_version", "a text", |_| true),
            overlay_background_color: read.text(
                "widget.branding.overlay_background_color",
                "a colour such as #F0F2F4 or \"\"",
                is_color_or_empty,
            ),
            social_proof: read.flag("widget.branding.social_proof"),
        },
        theme: read.pairs("widget.theme", "css_key", "value"),
    }
}

/// A number of days from 1 to `most`, as Belvo writes them.
fn is_days(text: &str, most: u32) -> bool {
    text.strip_suffix('d').is_some_and(|days| {
        (1..=3).contains(&days.len())
            && days.bytes().all(|digit| digit.is_ascii_digit())
            && days.parse::<u32>().is_ok_and(|days| (1..=most).contains(&days))
    })
}

fn is_url_or_empty(text: &str) -> bool {
    text.is_empty() || text.parse::<Url>().is_ok()
}

fn is_web_or_empty(text: &str) -> bool {
    text.is_empty() || text.parse::<Url>().is_ok_and(|url| matches!(url.scheme(), "https" | "http") && url.has_host())
}

fn is_color_or_empty(text: &str) -> bool {
    text.is_empty()
        || text.strip_prefix('#').is_some_and(|digits| {
            matches!(digits.len(), 3 | 4 | 6 | 8) && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        })
}

pub(super) fn webhook(read: &mut Reader<'_>, needs: Needs) -> Webhook {
    let authorization = read.secrets("webhook.authorization");
    if authorization.is_empty() && needs.webhook {
        let fix = "write the Authorization header that Belvo is set up to send, of 16 characters or more, \
                   or set VINCULO_WEBHOOK__AUTHORIZATION or webhook.authorization_file";
        read.refuse("webhook.authorization", "is missing, so nothing would tell Belvo from others", fix);
    }
    if authorization.iter().any(|value| value.len() < SECRET_LEN) {
        read.refuse(
            "webhook.authorization",
            "a value is shorter than 16 characters",
            "write longer ones, such as 32 random characters",
        );
    }
    if authorization.iter().any(|value| !is_header_value(value)) {
        let what = "a value cannot stand in a header";
        read.refuse("webhook.authorization", what, "use visible ASCII characters, and blanks only between them");
    }
    let trusted_proxies = read.networks("webhook.trusted_proxies");
    if trusted_proxies.iter().any(is_nearly_everyone) {
        let what = "trusts nearly everyone, so that anyone may claim any address";
        read.refuse("webhook.trusted_proxies", what, "write the addresses of your own proxies");
    }
    Webhook {
        listen: read.socket("webhook.listen"),
        path: read.text("webhook.path", "a path such as /webhooks/belvo", |path| {
            path.starts_with('/')
                && path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'{' | b'}'))
        }),
        authorization: authorization.into_iter().map(SecretString::from).collect(),
        allow_ips: read.networks("webhook.allow_ips"),
        trusted_proxies,
        max_body: read.size("webhook.max_body", ByteSize::kib(1)..=ByteSize::mib(16)),
        max_connections: read.whole("webhook.max_connections", 1..=65_536) as usize,
        header_timeout: read.duration("webhook.header_timeout", MILLISECOND..=60 * SECOND),
        body_timeout: read.duration("webhook.body_timeout", MILLISECOND..=60 * SECOND),
    }
}

fn is_header_value(text: &str) -> bool {
    text.trim() == text && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

pub(super) fn admin(read: &mut Reader<'_>, webhook: &Webhook) -> Admin {
    let listen = read.socket("admin.listen");
    if listen.port() != 0 && listen.port() == webhook.listen.port() {
        read.refuse(
            "admin.listen",
            "has the port of webhook.listen",
            "give each listener a port of its own, such as 9090",
        );
    }
    let token = read.secret("admin.token");
    let operate_tokens = tokens(read, "admin.operate_tokens");
    let read_tokens = tokens(read, "admin.read_tokens");
    let mut seen: Vec<&str> = token.iter().map(ExposeSecret::expose_secret).collect();
    for (key, tokens) in [("admin.operate_tokens", &operate_tokens), ("admin.read_tokens", &read_tokens)] {
        for token in tokens.iter().map(ExposeSecret::expose_secret) {
            if seen.contains(&token) {
                read.refuse(key, "has a token that stands here twice or has another role too", "give each its own");
            }
            seen.push(token);
        }
    }
    let expected = "a list of host names without port";
    Admin {
        listen,
        token,
        operate_tokens,
        read_tokens,
        allowed_hosts: read.texts("admin.allowed_hosts", expected, |host| {
            !host.is_empty()
                && !host.contains(['/', ' ', '@'])
                && (!host.contains(':') || host.parse::<std::net::Ipv6Addr>().is_ok())
        }),
    }
}

fn tokens(read: &mut Reader<'_>, key: &str) -> Vec<SecretString> {
    let tokens = read.secrets(key);
    if tokens.iter().any(|token| token.trim().is_empty()) {
        read.refuse(key, "has an empty token, which everybody knows", "make one with `openssl rand -base64 32`");
    }
    tokens.into_iter().map(SecretString::from).collect()
}

pub(super) fn state(read: &mut Reader<'_>) -> State {
    let url = read.text("state.url", "sqlite:// and a path", |_| true);
    let file = url.strip_prefix("sqlite://").filter(|path| !path.is_empty());
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        read.refuse("state.url", "this version keeps its state in SQLite", "the default is sqlite://var/state.db");
    } else if file.is_none() {
        // Not shown: the URL of a database may hold its password.
        read.refuse("state.url", "is not sqlite:// and a path", "the default is sqlite://var/state.db");
    }
    let encryption_key = read.secret("state.encryption_key");
    let encryption_key_previous = read.secret("state.encryption_key_previous");
    let is_key = |key: &SecretString| BASE64_STANDARD.decode(key.expose_secret()).is_ok_and(|bytes| bytes.len() == 32);
    let keys = [("state.encryption_key", &encryption_key), ("state.encryption_key_previous", &encryption_key_previous)];
    for (name, key) in keys {
        if key.as_ref().is_some_and(|key| !is_key(key)) {
            read.refuse(name, "is not 32 bytes in base64", "make one with `openssl rand -base64 32`");
        }
    }
    if encryption_key.is_none() && encryption_key_previous.is_some() {
        read.refuse("state.encryption_key", "is missing beside the previous one", "write the new key, or empty both");
    }
    State { path: read.absolute(file.unwrap_or("var/state.db")), encryption_key, encryption_key_previous }
}

pub(super) fn lake(read: &mut Reader<'_>) -> Lake {
    let url = read.text("lake.url", "a folder", |url| !url.is_empty());
    if let Some((scheme, _)) = url.split_once("://") {
        let what = format!("{scheme}:// is not known: this version keeps its lake in a folder");
        read.refuse("lake.url", what, "the default is var/lake");
    }
    let path = read.absolute(&url);
    // DuckDB reads other names out of these than the files have, also in the folder that the file of a relative path is
    // in.
    if path.to_string_lossy().contains(['?', '\\']) {
        let what = format!("{} has a ? or a \\, and DuckDB does not find files in such a folder", path.display());
        read.refuse("lake.url", what, "write a folder without them; the default is var/lake");
    }
    let expected = format!("a list of sinks; there are {}", listed(LakeForm::ALL.map(LakeForm::name)));
    let names = read.texts("lake.sinks", &expected, |name| LakeForm::by_name(name).is_some());
    let sinks: Vec<LakeForm> = names.iter().filter_map(|name| LakeForm::by_name(name)).collect();
    if sinks.is_empty() {
        read.refuse(
            "lake.sinks",
            "is empty, so nothing would be published",
            "the default is [\"parquet\", \"duckdb\"]",
        );
    }
    if (1..sinks.len()).any(|at| sinks[..at].contains(&sinks[at])) {
        read.refuse("lake.sinks", "names a sink twice", "name each once");
    }
    let link_buckets = read.whole("lake.link_buckets", 1..=256);
    if !link_buckets.is_power_of_two() {
        read.refuse("lake.link_buckets", format!("{link_buckets} is not a power of two"), "write 1, 16 or 64");
    }
    let publish_quiet = read.duration("lake.publish_quiet", Duration::ZERO..=DAY);
    let publish_max_wait = read.duration("lake.publish_max_wait", Duration::ZERO..=DAY);
    if publish_quiet > publish_max_wait {
        read.refuse(
            "lake.publish_quiet",
            "is longer than lake.publish_max_wait",
            "write a shorter one; the default is 2s",
        );
    }
    Lake {
        path,
        sinks,
        link_buckets,
        keep_snapshots: read.whole("lake.keep_snapshots", 1..=10_000) as usize,
        keep_for: read.duration("lake.keep_for", Duration::ZERO..=100 * YEAR),
        duckdb_storage_version: read.text(
            "lake.duckdb_storage_version",
            "a version of DuckDB that can be written, such as v1.0.0",
            is_version,
        ),
        publish_quiet,
        publish_max_wait,
        reference: Arc::new(reference(read)),
    }
}

/// Whether a network is larger than any that one operator has: over a /8 of IPv4, or over a /16 of IPv6.
fn is_nearly_everyone(network: &IpNet) -> bool {
    match network {
        IpNet::V4(network) => network.prefix_len() < 8,
        IpNet::V6(network) => match network.network().to_ipv4_mapped() {
            Some(_) => network.prefix_len() < 96 + 8,
            None => network.prefix_len() < 16,
        },
    }
}

fn is_version(text: &str) -> bool {
    let parts = text.strip_prefix('v').map(|numbers| numbers.split('.').collect::<Vec<_>>()).unwrap_or_default();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|digit| digit.is_ascii_digit());
    // Starting DuckDB takes longer than all the rest of this, so it is asked about other versions than the default
    // alone.
    parts.len() == 3 && parts.iter().all(is_number) && (text == "v1.0.0" || database::writes_version(text))
}

pub(super) fn pii(read: &mut Reader<'_>) -> Pii {
    Pii { publish: read.flag("pii.publish"), pepper: read.secret("pii.pepper") }
}

pub(super) fn retention(read: &mut Reader<'_>) -> Retention {
    let mut keep = |key: &str, words: &[&str]| match read.keep(key, words).as_str() {
        "" => Keep::Forever,
        "stale_in" => Keep::StaleIn,
        time => humantime::parse_duration(time).map_or(Keep::Forever, Keep::For),
    };
    Retention {
        bodies: keep("retention.bodies", &["stale_in"]),
        history: keep("retention.history", &["stale_in"]),
        webhooks: keep("retention.webhooks", &["stale_in"]),
        quarantine: Keep::For(read.duration("webhook.quarantine_keep", HOUR..=100 * YEAR)),
    }
}

pub(super) fn features(read: &mut Reader<'_>) -> Features {
    Features { lag_months: read.whole("features.lag_months", 0..=24) }
}

/// The reference tables; the compiled ones where a file is wrong, which is noted.
fn reference(read: &mut Reader<'_>) -> Reference {
    let dir = read.path("reference.dir");
    if let Some(dir) = dir.as_ref().filter(|dir| !dir.is_dir()) {
        let what = format!("there is no folder {}", dir.display());
        read.refuse("reference.dir", what, "make it, or write \"\" for the tables that come with vinculo");
    }
    Reference::read(dir.as_deref()).unwrap_or_else(|mistakes| {
        read.mistakes.extend(mistakes);
        Reference::compiled()
    })
}

/// The folder of the jobs; `None` when there is none and nobody named one.
pub(super) fn jobs_dir(read: &mut Reader<'_>) -> Option<PathBuf> {
    let dir = read.path("jobs.dir");
    match dir {
        Some(dir) if dir.is_dir() => Some(dir),
        Some(_) if read.is_default("jobs.dir") => None,
        Some(dir) => {
            let what = format!("there is no folder {}", dir.display());
            read.refuse("jobs.dir", what, "make it, or leave the key out for the jobs that come with vinculo");
            None
        }
        None => {
            read.refuse("jobs.dir", "is empty", "write a folder's path; the default is jobs");
            None
        }
    }
}
