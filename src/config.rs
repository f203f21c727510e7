//! What the operator decides: defaults, file, environment and flags, checked once.
//!
//! *Takes* the file, the environment and a command's own overrides. *Gives* one [`Config`] whose every value is usable
//! as it stands, or every mistake at once. Modules receive their own section, never the whole. *Promises* to touch
//! nothing: folders are made where they are used, after [`Config::check_folders`].

use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::mistake::Mistake;
use crate::reference::Reference;

mod check;
mod errors;
mod layers;
mod reader;

pub use errors::ConfigErrors;
pub use layers::DEFAULT;

use layers::Settings;
use reader::Reader;

/// The whole configuration, checked. Paths are absolute.
#[derive(Debug)]
pub struct Config {
    /// How to reach Belvo, and how much of it.
    pub belvo: Belvo,
    /// What a widget token is asked for with.
    pub widget: Widget,
    /// The listener that Belvo calls.
    pub webhook: Webhook,
    /// The listener for operators.
    pub admin: Admin,
    /// Where the record store is.
    pub state: State,
    /// Where the published tables are.
    pub lake: Lake,
    /// What may be derived from personal data.
    pub pii: Pii,
    /// How long things are kept.
    pub retention: Retention,
    /// How features are computed.
    pub features: Features,
    /// The folder of `jobs/*.toml`; without one, the jobs that come with the program run.
    pub jobs_dir: Option<PathBuf>,
}

/// What a command cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// It calls Belvo: both keys must be there.
    pub belvo: bool,
    /// It takes webhooks: an `Authorization` value must be there.
    pub webhook: bool,
}

/// Secrets of fewer characters can be guessed.
const SECRET_LEN: usize = 16;

/// Where a configuration is looked for when no file is named.
const FILES: [&str; 2] = ["vinculo.toml", "/etc/vinculo/vinculo.toml"];

impl Config {
    /// Reads the file `named`, or the first of `./vinculo.toml` and `/etc/vinculo/vinculo.toml` that is there, under
    /// `environment` (`VINCULO_SECTION__KEY`) and `overrides` (`("lake.url", "lake")`, written as in the environment).
    /// Relative paths start at the file's folder; without a file, at the working directory.
    ///
    /// # Errors
    /// Every mistake at once.
    pub fn load(
        named: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &[(&str, &str)],
        needs: Needs,
    ) -> Result<Self, ConfigErrors> {
        let (config, mistakes) = Self::examine(named, environment, overrides, needs);
        ConfigErrors::check(mistakes).map(|()| config)
    }

    /// The file that is read: the one `named`, or the first that is found.
    pub fn file(named: Option<&Path>) -> Option<&Path> {
        named.or_else(|| FILES.iter().map(Path::new).find(|path| path.exists()))
    }

    /// Like [`Config::load`], for one who goes on to look for more mistakes: what is wrong has its default.
    pub fn examine(
        named: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &[(&str, &str)],
        needs: Needs,
    ) -> (Self, Vec<Mistake>) {
        let file = Self::file(named);
        let mut settings = Settings::defaults();
        if let Some(file) = file {
            settings.read_file(file);
        }
        settings.read_environment(environment);
        for (key, text) in overrides {
            settings.read_flag(key, text);
        }
        let (config, mut mistakes) = Self::check(&settings, &folder_of(file), needs);
        if file.is_none() && !mistakes.is_empty() {
            // Whoever has no file yet is better served by this than by a list of what it lacks.
            let what = format!("no {} was found", FILES.join(" and no "));
            mistakes
                .insert(0, Mistake::new("configuration", "", what, "`vinculo init` writes one, --config names one"));
        }
        (config, mistakes)
    }

    /// Reads every key. What a file lacks that could not be read is not known.
    fn check(settings: &Settings, root: &Path, needs: Needs) -> (Self, Vec<Mistake>) {
        let read = &mut Reader::new(settings, root);
        let belvo = check::belvo(read, needs);
        let widget = check::widget(read);
        let webhook = check::webhook(read, needs);
        let config = Self {
            belvo,
            widget,
            admin: check::admin(read, &webhook),
            webhook,
            state: check::state(read),
            lake: check::lake(read),
            pii: check::pii(read),
            retention: check::retention(read),
            features: check::features(read),
            jobs_dir: check::jobs_dir(read),
        };
        let found = read.mistakes.drain(..).filter(|_| !settings.is_unread);
        let mistakes = settings.mistakes.iter().cloned().chain(found).collect();
        (config, mistakes)
    }

    /// Names of the sections that differ in `other` beyond what a running daemon takes over
    /// ([`crate::daemon::Daemon::reload`]). Secrets are not compared.
    pub fn restart_needed_for(&self, other: &Self) -> Vec<&'static str> {
        let sections = |config: &Self| {
            let mut webhook = config.webhook.clone();
            webhook.authorization.clear();
            let mut admin = config.admin.clone();
            (admin.token, admin.operate_tokens, admin.read_tokens) = (None, Vec::new(), Vec::new());
            [
                ("belvo", format!("{:?}", config.belvo)),
                ("widget", format!("{:?}", config.widget)),
                ("webhook", format!("{webhook:?}")),
                ("admin", format!("{admin:?}")),
                ("state", format!("{:?}", config.state)),
                ("lake", format!("{:?}", config.lake)),
                ("pii", format!("{:?}", config.pii)),
                ("retention", format!("{:?}", config.retention)),
                ("features", format!("{:?}", config.features)),
                ("jobs", format!("{:?}", config.jobs_dir)),
            ]
        };
        let pairs = sections(self).into_iter().zip(sections(other));
        pairs.filter(|((_, ours), (_, theirs))| ours != theirs).map(|((name, _), _)| name).collect()
    }

    /// Keys of the secrets that are so short that they can be guessed. `webhook.authorization` is not among them: that
    /// many try, so that a short one is refused.
    pub fn short_secrets(&self) -> Vec<&'static str> {
        let Admin { token, operate_tokens, read_tokens, .. } = &self.admin;
        let all = [
            ("admin.token", token.as_slice()),
            ("admin.operate_tokens", operate_tokens),
            ("admin.read_tokens", read_tokens),
            ("pii.pepper", self.pii.pepper.as_slice()),
        ];
        let is_short = |secret: &SecretString| secret.expose_secret().len() < SECRET_LEN;
        all.into_iter().filter(|(_, secrets)| secrets.iter().any(is_short)).map(|(key, _)| key).collect()
    }

    /// Makes the folder of the state where it is missing, and writes a file into it and that of the lake to see that it
    /// can. A lake is made by whoever knows that it is none that is not mounted: until then, the folder is tried that
    /// it is to be in.
    ///
    /// # Errors
    /// Those that cannot be used.
    pub fn check_folders(&self) -> Result<(), ConfigErrors> {
        let state = self.state.path.parent().unwrap_or(Path::new("/"));
        let lake = self.lake.path.as_path();
        let tried = lake.ancestors().find(|folder| folder.exists()).unwrap_or(lake);
        let folders = [("state.url", state, state, 0o700), ("lake.url", lake, tried, 0o750)];
        let unusable = folders.into_iter().filter_map(|(key, folder, tried, mode)| {
            let error = try_folder(tried, mode).err()?;
            let what = format!("the folder {} cannot be used: {error}", folder.display());
            Some(Mistake::new(
                "configuration",
                key,
                what,
                "name a folder that this user may write, or make this one so",
            ))
        });
        let no_file = self.state.path.is_dir().then(|| {
            let what = format!("{} is a folder", self.state.path.display());
            Mistake::new("configuration", "state.url", what, "name a file, such as the default sqlite://var/state.db")
        });
        let mistakes = unusable.chain(no_file);
        ConfigErrors::check(mistakes.collect())
    }
}

/// The folder of the file, absolute.
fn folder_of(file: Option<&Path>) -> PathBuf {
    let folder = file.and_then(Path::parent).filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned())
}

fn try_folder(folder: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(folder)?;
    // One name for all, so that what a killed process left is gone after the next start.
    let probe = folder.join(".vinculo-probe");
    match fs::write(&probe, b"probe") {
        // It is the right folder, and room can be made while the daemon runs: readiness tells of it until then.
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {}
        written => written?,
    }
    match fs::remove_file(&probe) {
        // Another process that tries the folder was faster.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// How to reach Belvo, and how much of it may be used.
#[derive(Debug, Clone)]
pub struct Belvo {
    /// Origin of every call but the token's.
    pub base_url: Url,
    /// Origin of the call for a widget token.
    pub token_url: Url,
    /// The hosted widget's page.
    pub widget_url: Url,
    /// Basic authentication's user.
    pub secret_id: SecretString,
    /// Basic authentication's password.
    pub secret_password: SecretString,
    /// Items asked for in a page, 1 to 1000.
    pub page_size: u32,
    /// The request budget of all calls together.
    pub budget: Budget,
    /// Share of the budget, 0 to 1, that only webhooks and widget tokens may use.
    pub reserve: f64,
    /// Requests at the same time for refreshes, each of one or several links; an eighth more for links of which Belvo
    /// never told.
    pub workers: usize,
    /// To a connected, authenticated socket.
    pub connect_timeout: Duration,
    /// Longest silence within an answer.
    pub idle_timeout: Duration,
    /// From the send to the last byte.
    pub total_timeout: Duration,
    /// Largest unpacked answer, in bytes.
    pub max_body: u64,
    /// Between the two lists that agree that a row is gone.
    pub confirm_after: Duration,
}

/// At most `requests` calls arrive at Belvo in any window of length `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Calls in a window.
    pub requests: u32,
    /// The window's length.
    pub per: Duration,
}

/// What a widget token is asked for with. Texts that are empty are missing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Widget {
    /// How long Belvo keeps data that is not updated, such as `365d`.
    pub stale_in: String,
    /// `store`, `nostore`, or a number of days such as `30d`.
    pub credentials_storage: String,
    /// Where the user's app goes on.
    pub callback_urls: CallbackUrls,
    /// How the widget looks and whose it says it is.
    pub branding: Branding,
    /// Colours: a CSS key such as `--color-primary-base`, and its value.
    pub theme: Vec<(String, String)>,
}

/// Where the hosted widget leads when it is done: `https://` or an app's own scheme.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CallbackUrls {
    /// After a link was made.
    pub success: String,
    /// After the user left.
    pub exit: String,
    /// After something went wrong.
    pub event: String,
}

/// Whose widget it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Branding {
    /// URL of a picture.
    pub company_icon: String,
    /// URL of a picture.
    pub company_logo: String,
    /// The name that users see.
    pub company_name: String,
    /// URL of the terms that users accept.
    pub company_terms_url: String,
    /// Which version of the terms; empty: not sent.
    pub company_terms_version: String,
    /// Colour behind the widget; empty: not sent.
    pub overlay_background_color: String,
    /// Whether the widget says how many others have connected.
    pub social_proof: bool,
}

/// The listener that Belvo calls.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Address to bind.
    pub listen: SocketAddr,
    /// The one path that is served.
    pub path: String,
    /// Accepted values of the `Authorization` header, at least one.
    pub authorization: Vec<SecretString>,
    /// Addresses that may call; empty lets everyone.
    pub allow_ips: Vec<IpNet>,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Largest body, in bytes.
    pub max_body: u64,
    /// Connections served at the same time.
    pub max_connections: usize,
    /// From the first byte awaited to the end of the headers.
    pub header_timeout: Duration,
    /// From the end of the headers to the end of the body.
    pub body_timeout: Duration,
}

/// The listener for operators: health, readiness, metrics, the API under `/v1`, and the dashboard.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Address to bind.
    pub listen: SocketAddr,
    /// Bearer token of everything but health, readiness and metrics; it has every role.
    pub token: Option<SecretString>,
    /// Further tokens, which order but erase nothing.
    pub operate_tokens: Vec<SecretString>,
    /// Further tokens, which only look.
    pub read_tokens: Vec<SecretString>,
    /// Host names, without port, that a request may ask for.
    pub allowed_hosts: Vec<String>,
}

/// Where the record store is.
#[derive(Debug, Clone)]
pub struct State {
    /// The SQLite file.
    pub path: PathBuf,
    /// 32 bytes in base64: the key of the keys that bodies are encrypted with. Without one they are not.
    pub encryption_key: Option<SecretString>,
    /// The key before, while it is being replaced.
    pub encryption_key_previous: Option<SecretString>,
}

impl State {
    /// What the operator should know of how bodies are kept, in words for a person; `None` when all is well.
    pub fn unkept_promise(&self) -> Option<&'static str> {
        self.encryption_key.is_none().then_some(
            "state.encryption_key is empty, so that bodies are not encrypted: make one with `openssl rand -base64 32`, \
             and what is kept already is encrypted at the next start",
        )
    }
}

/// Where the published tables are, and when they are renewed.
#[derive(Debug, Clone)]
pub struct Lake {
    /// The folder.
    pub path: PathBuf,
    /// The forms that they are published in, each once.
    pub sinks: Vec<LakeForm>,
    /// Partitions of each table with a `link_id`.
    pub link_buckets: u32,
    /// Snapshots that stay, the current one included.
    pub keep_snapshots: usize,
    /// No snapshot is dropped sooner than this after another took its place.
    pub keep_for: Duration,
    /// Storage version of `vinculo.duckdb`, such as `v1.0.0`.
    pub duckdb_storage_version: String,
    /// Publish this long after the last change,
    pub publish_quiet: Duration,
    /// and at the latest this long after the first.
    pub publish_max_wait: Duration,
    /// The law's tables, which are published too.
    pub reference: Arc<Reference>,
}

/// A form that the published tables may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LakeForm {
    /// Parquet files, of which every other form is made.
    Parquet,
    /// One DuckDB file.
    Duckdb,
}

impl LakeForm {
    /// Every form.
    pub const ALL: [Self; 2] = [Self::Parquet, Self::Duckdb];

    /// Its name in `lake.sinks`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Duckdb => "duckdb",
        }
    }

    /// The form of that name; `None` when there is none.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.name() == name)
    }
}

#[cfg(test)]
impl Lake {
    /// One at `path` for few links, which publishes at once.
    pub(crate) fn small(path: PathBuf, sinks: &[LakeForm]) -> Self {
        Self {
            path,
            sinks: sinks.to_vec(),
            link_buckets: 1,
            keep_snapshots: 10,
            keep_for: Duration::ZERO,
            duckdb_storage_version: "v1.0.0".to_owned(),
            publish_quiet: Duration::ZERO,
            publish_max_wait: Duration::ZERO,
            reference: Arc::new(Reference::compiled()),
        }
    }
}

/// What may be derived from personal data.
#[derive(Debug, Clone)]
pub struct Pii {
    /// Whether unmasked owners, and employers that are persons, are published under `pii/`.
    pub publish: bool,
    /// Key of `person_key` and of the key of an employer that is a person; without one both are NULL.
    pub pepper: Option<SecretString>,
}

/// How long a kind of thing is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Until somebody erases it.
    Forever,
    /// So long.
    For(Duration),
    /// As long as Belvo keeps the link's data without an update: its own `stale_in`.
    StaleIn,
}

/// How long things are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Records, with all that was made of them, since Belvo last read them.
    pub bodies: Keep,
    /// Versions, since a newer one took their place.
    pub history: Keep,
    /// Webhooks that were understood.
    pub webhooks: Keep,
    /// Those in the quarantine.
    pub quarantine: Keep,
}

/// How features are computed.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    /// Months before the date's own that are not yet complete, unless a command says otherwise.
    pub lag_months: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVE: Needs = Needs { belvo: true, webhook: true };

    fn load(text: &str, environment: &[(&str, &str)], needs: Needs) -> Result<Config, ConfigErrors> {
        let mut settings = Settings::defaults();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vinculo.toml");
        fs::write(&file, text).unwrap();
        settings.read_file(&file);
        settings.read_environment(environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())));
        let (config, mut mistakes) = Config::check(&settings, Path::new("/srv/vinculo"), needs);
        for mistake in &mut mistakes {
            mistake.place = mistake.place.replace(file.to_str().unwrap(), "vinculo.toml");
        }
        ConfigErrors::check(mistakes).map(|()| config)
    }

    fn errors(text: &str, environment: &[(&str, &str)], needs: Needs) -> String {
        load(text, environment, needs).unwrap_err().to_string()
    }

    #[test]
    fn a_variable_that_is_empty_is_no_empty_list() {
        const NAME: &str = "VINCULO_WEBHOOK__ALLOW_IPS";
        let any = load("", &[(NAME, "[]")], Needs::default()).unwrap();
        assert!(any.webhook.allow_ips.is_empty());
        for empty in ["", " "] {
            let said = errors("", &[(NAME, empty)], Needs::default());
            assert!(said.contains(NAME) && said.contains("a list of IP addresses"), "{said}");
        }
    }

    #[test]
    fn a_number_beyond_all_bounds_is_told_with_its_line() {
        let said = errors("[belvo]\npage_size = 99999999999999999999\n", &[], Needs::default());
        assert!(said.contains("line 2 has a whole number that is too large"), "{said}");
    }

    #[test]
    fn the_default_file_read_as_a_file_is_the_default() {
        let from_file = load(DEFAULT, &[], Needs::default()).unwrap();
        let compiled = load("", &[], Needs::default()).unwrap();
        assert_eq!(format!("{from_file:?}"), format!("{compiled:?}"));
        assert_eq!(compiled.belvo.base_url.as_str(), "https://api.belvo.com/");
        assert_eq!(compiled.belvo.budget, Budget { requests: 75, per: Duration::from_secs(30) });
        assert_eq!(compiled.belvo.max_body, 64 << 20);
        assert_eq!(compiled.webhook.max_body, 64 << 10);
        assert_eq!(compiled.state.path, Path::new("/srv/vinculo/var/state.db"));
        assert_eq!(compiled.lake.path, Path::new("/srv/vinculo/var/lake"));
        assert!(compiled.pii.pepper.is_none() && compiled.admin.token.is_none());
    }

    #[test]
    fn every_mistake_is_told_at_once_with_what_to_write() {
        let text = r#"
            [belvo]
            base_url = "http://belvo.example"
            pagesize = 10
            page_size = 5000
            idle_timeout = "30"
            budget = { requests = 100, per = "30s" }
            reserve = 1.5
            workers = "many"
            [webhook]
            listen = "8080"
            authorization = ["short"]
            trusted_proxies = ["0.0.0.0/0"]
            max_body = "64"
            [lake]
            sinks = ["parquet", "duck"]
            link_buckets = 3
            duckdb_storage_version = "1.0"
            [state]
            encryption_key = "abc"
            [lakes]
            url = "x"
        "#;
        insta::assert_snapshot!(errors(text, &[("VINCULO_BELVO_SECRET_ID", "x"), ("VINCULO_LAKE__KEEP_FRO", "1h")], SERVE), @r#"
the configuration has 20 errors:
  vinculo.toml: belvo.pagesize: unknown key; did you mean belvo.page_size?
  vinculo.toml: lakes.url: unknown key; did you mean lake.url?
  VINCULO_BELVO_SECRET_ID: unknown key; did you mean VINCULO_BELVO__SECRET_ID?
  VINCULO_LAKE__KEEP_FRO: lake.keep_fro: unknown key; did you mean VINCULO_LAKE__KEEP_FOR?
  vinculo.toml: belvo.base_url: would send the secrets over plain http:// to another machine; write https://, or allow_http = true if the way there is safe
  vinculo.toml: belvo.secret_id: is missing; write the one of Belvo's dashboard, or set VINCULO_BELVO__SECRET_ID or belvo.secret_id_file
  vinculo.toml: belvo.secret_password: is missing; write the one of Belvo's dashboard, or set VINCULO_BELVO__SECRET_PASSWORD or belvo.secret_password_file
  vinculo.toml: belvo.page_size: 5000 is not a whole number from 1 to 1000; the default is 1000
  vinculo.toml: belvo.budget.requests: 100 in 30s can be more than 80 in 30 s, which Belvo blocks; the default is 75 in 30s
  vinculo.toml: belvo.reserve: 1.5 is not a share from 0 to less than 1; the default is 0.04
  vinculo.toml: belvo.workers: "many" is not a whole number from 1 to 1024; the default is 16
  vinculo.toml: belvo.idle_timeout: "30" is not a time with its unit, from 1ms to 1h; the default is "30s"
  vinculo.toml: webhook.authorization: a value is shorter than 16 characters; write longer ones, such as 32 random characters
  vinculo.toml: webhook.trusted_proxies: trusts nearly everyone, so that anyone may claim any address; write the addresses of your own proxies
  vinculo.toml: webhook.listen: "8080" is not an IP address with a port, such as 127.0.0.1:8080; the default is "0.0.0.0:8080"
  vinculo.toml: webhook.max_body: "64" is not a size with its unit, from 1.0 KiB to 16.0 MiB; the default is "64KiB"
  vinculo.toml: state.encryption_key: is not 32 bytes in base64; make one with `openssl rand -base64 32`
  vinculo.toml: lake.sinks: ["parquet", "duck"] is not a list of sinks; there are parquet, duckdb; the default is ["parquet", "duckdb"]
  vinculo.toml: lake.link_buckets: 3 is not a power of two; write 1, 16 or 64
  vinculo.toml: lake.duckdb_storage_version: "1.0" is not a version of DuckDB that can be written, such as v1.0.0; the default is "v1.0.0"
"#);
    }

    #[test]
    fn whoever_trusts_half_the_world_or_writes_a_password_into_an_address_is_told_so_without_it() {
        for networks in [r#"["0.0.0.0/1", "128.0.0.0/1"]"#, r#"["::ffff:0.0.0.0/96"]"#, r#"["2000::/3"]"#] {
            let told = errors(&format!("[webhook]\ntrusted_proxies = {networks}"), &[], Needs::default());
            assert!(told.contains("webhook.trusted_proxies"), "{told}");
        }
        let own = "[webhook]\ntrusted_proxies = [\"10.0.0.0/8\", \"::ffff:10.1.2.3/128\", \"fd00::/16\"]";
        load(own, &[], Needs::default()).unwrap();
        let told = errors("[belvo]\nbase_url = \"https://me:password@belvo.example\"", &[], Needs::default());
        assert!(told.contains("belvo.base_url") && !told.contains("password@"), "{told}");
    }

    #[test]
    fn the_two_lists_that_agree_are_never_one() {
        let told = errors("[belvo]\nconfirm_after = \"0s\"", &[], Needs::default());
        assert!(told.contains("belvo.confirm_after"), "{told}");
        load("[belvo]\nconfirm_after = \"100ms\"", &[], Needs::default()).unwrap();
    }

    #[test]
    fn a_lake_is_in_no_folder_whose_name_duckdb_reads_otherwise() {
        for folder in ["a?b/lake", "a\\\\b/lake"] {
            let told = errors(&format!("[lake]\nurl = \"{folder}\""), &[], Needs::default());
            assert!(told.contains("lake.url") && told.contains("DuckDB"), "{told}");
        }
        for folder in ["env=prod/lake", "o'x/la ke", "a[1]/lake"] {
            load(&format!("[lake]\nurl = \"{folder}\""), &[], Needs::default()).unwrap();
        }
    }

    #[test]
    fn only_versions_that_duckdb_knows_are_written() {
        let text = |version: &str| format!("[lake]\nduckdb_storage_version = \"{version}\"");
        load(&text("v1.2.0"), &[], Needs::default()).unwrap();
        let told = errors(&text("v9.0.0"), &[], Needs::default());
        assert!(told.contains("lake.duckdb_storage_version") && told.contains("v1.0.0"), "{told}");
    }

    #[test]
    fn a_secret_is_never_shown() {
        let text =
            "[belvo]\nsecret_id = 47110815\nsecret_password = [\"geheim\"]\n[webhook]\nauthorization = \"geheim\"";
        let shown = errors(text, &[("VINCULO_SECRET", "geheim")], SERVE);
        assert!(!shown.contains("geheim") && !shown.contains("47110815"), "{shown}");
        let broken = errors("[belvo]\nsecret_id = \"geheim", &[], Needs::default());
        assert!(!broken.contains("geheim") && broken.contains("line 2"), "{broken}");
    }

    #[test]
    fn the_environment_counts_more_than_the_file_and_a_command_more_than_both() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("v.toml");
        fs::write(&file, "[belvo]\npage_size = 10\nworkers = 2\n[lake]\nurl = \"a\"").unwrap();
        let environment = [
            ("VINCULO_BELVO__WORKERS", "3"),
            ("VINCULO_LAKE__URL", "b"),
            ("VINCULO_LAKE__SINKS", "parquet"),
            ("VINCULO_BELVO__BUDGET", "{ requests = 7 }"),
            ("VINCULO_WEBHOOK__AUTHORIZATION", "Bearer 0123456789, Bearer 9876543210"),
            ("VINCULO_PORT", "tcp://10.0.0.1:80"),
            ("VINCULO_SERVICE_HOST", "10.0.0.1"),
            ("VINCULO_LOG_LEVEL", "debug"),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = Config::load(Some(&file), environment, &[("lake.url", "c")], Needs::default()).unwrap();
        assert_eq!((config.belvo.page_size, config.belvo.workers), (10, 3));
        assert_eq!(config.belvo.budget, Budget { requests: 7, per: Duration::from_secs(30) });
        assert_eq!(config.lake.path, fs::canonicalize(folder.path()).unwrap().join("c"));
        assert_eq!(config.lake.sinks, [LakeForm::Parquet]);
        assert_eq!(config.webhook.authorization.len(), 2);
    }

    #[test]
    fn a_secret_in_a_file_is_trimmed_and_the_later_layer_counts() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        fs::write(&secret, "from-a-file-of-its-own\n").unwrap();
        let path = secret.to_str().unwrap();
        let text = "[pii]\npepper = \"from-the-configuration\"";
        let config = load(text, &[("VINCULO_PII__PEPPER_FILE", path)], Needs::default()).unwrap();
        assert_eq!(config.pii.pepper.unwrap().expose_secret(), "from-a-file-of-its-own");
        let text = format!("[pii]\npepper_file = \"{path}\"");
        let config = load(&text, &[("VINCULO_PII__PEPPER", "from-the-environment")], Needs::default()).unwrap();
        assert_eq!(config.pii.pepper.unwrap().expose_secret(), "from-the-environment");
        let twice = errors(&format!("{text}\npepper = \"0123456789abcdef\""), &[], Needs::default());
        assert!(twice.contains("is written together with pepper_file"), "{twice}");
    }

    #[test]
    fn each_token_of_the_admin_listener_has_one_role_and_is_no_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("tokens");
        fs::write(&secret, "the-first-of-two-readers\n\nthe-second-of-two-readers\n").unwrap();
        let text = "[admin]\ntoken = \"one-for-everything\"\noperate_tokens = [\"one-for-operators\"]";
        let variables = [("VINCULO_ADMIN__READ_TOKENS_FILE", secret.to_str().unwrap())];
        let admin = load(text, &variables, Needs::default()).unwrap().admin;
        assert_eq!((admin.operate_tokens.len(), admin.read_tokens.len()), (1, 2));
        let wrong = "[admin]\ntoken = \"one-for-everything\"\noperate_tokens = [\" \"]\n\
                     read_tokens = [\"one-for-everything\"]";
        insta::assert_snapshot!(errors(wrong, &[], Needs::default()), @"
        the configuration has 2 errors:
          vinculo.toml: admin.operate_tokens: has an empty token, which everybody knows; make one with `openssl rand -base64 32`
          vinculo.toml: admin.read_tokens: has a token that stands here twice or has another role too; give each its own
        ");
    }

    #[test]
    fn short_secrets_of_the_operators_own_are_taken_and_named() {
        let text =
            "[admin]\ntoken = \"short\"\nread_tokens = [\"one-of-16-letters\", \"brief\"]\n[pii]\npepper = \"salt\"";
        let config = load(text, &[], Needs::default()).unwrap();
        assert_eq!(config.short_secrets(), ["admin.token", "admin.read_tokens", "pii.pepper"]);
        assert_eq!(config.pii.pepper.unwrap().expose_secret(), "salt");
        assert!(load("", &[], Needs::default()).unwrap().short_secrets().is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_said_to_lack_anything() {
        let slip = errors("[belvo]\npage_size = = 7", &[], SERVE);
        assert!(slip.contains("line 2 is not TOML") && !slip.contains("is missing"), "{slip}");
        let missing = Config::load(Some(Path::new("/nowhere/vinculo.toml")), [], &[], SERVE).unwrap_err();
        assert_eq!(missing.0.len(), 1, "{missing}");
        assert!(missing.to_string().contains("/nowhere/vinculo.toml: cannot be read"), "{missing}");
    }

    #[test]
    fn a_secret_may_be_a_credential_of_the_service() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("pepper"), "handed-over-by-systemd\n").unwrap();
        let text = "[pii]\npepper_file = \"${CREDENTIALS_DIRECTORY}/pepper\"";
        let environment = [("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap())];
        let config = load(text, &environment, Needs::default()).unwrap();
        assert_eq!(config.pii.pepper.unwrap().expose_secret(), "handed-over-by-systemd");
        let elsewhere = errors(text, &[("CREDENTIALS_DIRECTORY", "/nowhere")], Needs::default());
        assert!(elsewhere.contains("/nowhere/pepper cannot be read"), "{elsewhere}");
    }

    #[test]
    fn what_a_reload_cannot_take_over_is_named() {
        let before = load("", &[], Needs::default()).unwrap();
        let text = "[webhook]\nauthorization = [\"Bearer of-a-new-value\"]\n[admin]\ntoken = \"a-new-token-of-all\"";
        let reloadable = load(text, &[], Needs::default()).unwrap();
        assert_eq!(before.restart_needed_for(&reloadable), Vec::<&str>::new());
        let text = format!("{text}\nlisten = \"127.0.0.1:1\"\n[lake]\nkeep_snapshots = 5\n[features]\nlag_months = 2");
        let other = load(&text, &[], Needs::default()).unwrap();
        assert_eq!(before.restart_needed_for(&other), ["admin", "lake", "features"]);
    }

    #[test]
    fn plain_http_and_any_budget_are_for_this_machine_only() {
        let sandbox = "[belvo]\nbase_url = \"http://127.0.0.1:8090\"\nbudget = { requests = 5000, per = \"1s\" }";
        assert!(load(sandbox, &[], Needs::default()).is_ok());
        let beyond = sandbox.replace("127.0.0.1", "10.0.0.7");
        assert!(load(&beyond, &[], Needs::default()).is_err());
        assert!(load(&beyond, &[("VINCULO_BELVO__ALLOW_HTTP", "true")], Needs::default()).is_ok());
        // 40 each 10 s can be 120 in Belvo's 30 s.
        assert!(load("[belvo]\nbudget = { requests = 40, per = \"10s\" }", &[], Needs::default()).is_err());
    }

    #[test]
    fn the_folder_of_the_state_is_no_business_of_strangers() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mut config = load("", &[], Needs::default()).unwrap();
        config.state.path = folder.path().join("var/state.db");
        config.lake.path = folder.path().join("lake");
        config.check_folders().unwrap();
        let state = fs::metadata(folder.path().join("var")).unwrap();
        assert_eq!(state.permissions().mode() & 0o777, 0o700);
        assert!(!config.lake.path.exists(), "it is made by whoever knows that it is none that is not mounted");
    }

    #[test]
    fn a_folder_that_is_a_file_is_named_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("lake"), "").unwrap();
        let mut config = load("", &[], Needs::default()).unwrap();
        config.state.path = folder.path().join("var/state.db");
        config.lake.path = folder.path().join("lake");
        let errors = config.check_folders().unwrap_err();
        assert_eq!(errors.0.len(), 1);
        assert_eq!(errors.0[0].key, "lake.url");
    }
}
