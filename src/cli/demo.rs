//! `vinculo demo`: the whole flow against a fake Belvo in the same process, without an account.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::sql::{self, Form};
use super::{Exit, Global, init, ordered, streams, work};
use crate::admin::Recorder;
use crate::admin::status::grouped;
use crate::clock::Clock;
use crate::config::{Config, Needs};
use crate::daemon::{Daemon, Parts};
use crate::database;
use crate::features::runs::{Mode, Wanted};
use crate::operations::Order;
use crate::publish::{Lake, Manifest};
use crate::queue;
use crate::simulate::{self, SECRET_ID, SECRET_PASSWORD, Simulation};
use crate::store;

/// First line of the configuration that a demo writes, and by which the next one knows what it may replace.
const MADE_BY_DEMO: &str = "# Made by `vinculo demo`; the next demo in this folder replaces it.\n";

/// What the simulated Belvo sends with its webhooks. The demo listens to this machine alone.
const AUTHORIZATION: &str = "Bearer demo-webhook-authorization";

/// Where a fake Belvo would listen that is started beside the demo's configuration.
const BELVO: &str = "http://127.0.0.1:8090";

/// The pepper of a demo: the same for all, so that two demos give the same rows.
const PEPPER: &str = "demo-pepper-for-simulated-people";

/// The question that the summary answers.
const QUESTION: &str =
    "SELECT cnae_section, count(DISTINCT link_id) AS people, round(median(base_amount), 2) AS median_pay_brl
FROM salaries JOIN employments USING (link_id, employment_key)
WHERE is_open AND salary_type = 'REGULAR' AND currency = 'BRL' AND reference_month >= DATE '2026-01-01'
GROUP BY cnae_section ORDER BY people DESC, cnae_section LIMIT 5";

/// What a credit decision reads: the first links of the table.
const EXCERPT: &str = "SELECT left(link_id, 8) AS link, is_employed AS employed, tenure_current_months AS tenure,
  round(income_median_3m_brl, 2) AS income_3m, income_cv_12m AS spread, paid_months_12m AS paid, cnae_section AS cnae,
  round(consignado_margin_upper_brl, 2) AS margin, dq_flags
FROM credit_features ORDER BY link_id LIMIT 5";

/// Three people whom a list of payslips would misjudge: at the ceiling of INSS, whose growth is the table's; in two jobs
/// for most of the year; with a last job that the register never closed and that has long not been paid.
const TELLING: &str = "WITH stories AS (
  SELECT 1 AS n, 'at the INSS ceiling' AS story, tenure_max_months AS weight, *,
    format('pay +{:.1f} % in a year: the ceiling''s step, {} of 12 months', 100 * income_growth_yoy, capped_months_12m) AS row_says
  FROM credit_features WHERE capped_months_12m >= 6 AND income_growth_yoy > 0
  UNION ALL
  SELECT 2, 'two jobs at once', income_to_teto, *,
    format('R$ {} a month, {:.0f} % from the main job; none is capped', round(income_median_3m_brl, 2), 100 * main_job_income_share)
  FROM credit_features
  WHERE concurrent_months_12m >= 6 AND is_employed AND capped_months_12m = 0 AND main_job_income_share < 0.9
  UNION ALL
  SELECT 3, 'a job never closed', months_since_last_job, *,
    format('still open by its dates, yet unpaid for {:.1f} months', months_since_last_job)
  FROM credit_features
  WHERE open_jobs_without_pay > 0 AND NOT is_employed
    AND link_id IN (SELECT link_id FROM employments GROUP BY link_id HAVING arg_max(is_open, start_date))
)
SELECT left(link_id, 8) AS link, story, is_employed AS employed, paid_months_12m AS paid, row_says
FROM stories
QUALIFY row_number() OVER (PARTITION BY n ORDER BY weight DESC NULLS LAST, link_id) = 1
ORDER BY n";

/// One of them, to be explained.
const FIRST: &str = "SELECT link_id, as_of_date FROM credit_features
WHERE open_jobs_without_pay > 0 AND NOT is_employed
  AND link_id IN (SELECT link_id FROM employments GROUP BY link_id HAVING arg_max(is_open, start_date))
ORDER BY months_since_last_job DESC, link_id LIMIT 1";

/// What `demo` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many people connect
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub people: u32,
    /// The same seed gives the same people
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// Where state and lake go
    #[arg(long, value_name = "D", default_value = "vinculo-demo")]
    pub dir: PathBuf,
    /// Keep running after everything is published
    #[arg(long)]
    pub serve: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    prepare(&args.dir)?;
    let config_file = args.dir.join("vinculo.toml");
    Recorder::global();
    let started = Instant::now();
    work::block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base_url = format!("http://{}", listener.local_addr()?);
        let shutdown = CancellationToken::new();
        let config = Config::load(
            Some(&config_file),
            [],
            &[
                ("belvo.base_url", &base_url),
                ("belvo.token_url", &base_url),
                ("belvo.widget_url", &format!("{base_url}/widget/")),
                ("webhook.listen", "127.0.0.1:0"),
                ("admin.listen", "127.0.0.1:0"),
            ],
            Needs { belvo: true, webhook: true },
        )?;
        let clock = simulated_clock();
        let daemon = Daemon::start(&config, clock.clone(), Parts::All).await?;
        if args.serve {
            name_addresses(&config_file, &daemon, &base_url)?;
        }
        let webhook =
            format!("http://{}{}", daemon.webhook_address.context("the webhook listener is up")?, config.webhook.path);
        let simulation = Simulation::new(simulate::Settings {
            people: args.people,
            seed: args.seed,
            webhook: Some(webhook.parse()?),
            webhook_authorization: AUTHORIZATION.into(),
            webhook_latency: Duration::from_millis(500),
            limit: None,
            pepper: Some(PEPPER.into()),
            ..simulate::Settings::default()
        });
        let serving = tokio::spawn(simulation.clone().serve(listener, shutdown.clone()));
        simulation.connect(0, args.people);
        let cut_short = tokio::select! {
            followed = follow(&daemon, &simulation, args.people, global) => followed.map(|()| false)?,
            signal = work::asked_to_end() => signal.map(|_| true)?,
        };
        let mut exit = if cut_short { Exit::Interrupted } else { Exit::Done };
        if !cut_short {
            let lag_months = config.features.lag_months;
            let order = Order::Features(Wanted { as_of: None, mode: Mode::Strict, lag_months });
            ordered::follow_here(&daemon, order, Parts::All, global).await?;
            let manifest = Lake::open(&config.lake.path)?.current().context("the demo published nothing")?;
            summarize(args, global, &config, &manifest, started.elapsed())?;
            if args.serve {
                let address = daemon.admin_address.context("the admin listener is up")?;
                let text = format!(
                    "still running; dashboard on http://{address}/, where the admin.token of {} signs in; metrics on \
                     http://{address}/metrics; Ctrl-C ends it",
                    config_file.display()
                );
                streams::note(&text, global)?;
                exit = Exit::by(work::asked_to_end().await?);
            }
        }
        daemon.stop().await;
        shutdown.cancel();
        serving.await??;
        Ok(exit)
    })
}

/// Writes where everything listens into the configuration, so that commands with it find this daemon.
fn name_addresses(config_file: &Path, daemon: &Daemon, base_url: &str) -> anyhow::Result<()> {
    let mut text = fs::read_to_string(config_file)?.replace(BELVO, base_url);
    for (from, to) in [("0.0.0.0:8080", daemon.webhook_address), ("127.0.0.1:9090", daemon.admin_address)] {
        text = text.replace(from, &to.context("both listeners are up")?.to_string());
    }
    Ok(fs::write(config_file, text)?)
}

/// A clock that shows the simulated day, on which the people live: so every demo gives the same rows, features included.
fn simulated_clock() -> Clock {
    let (start, begun) = (simulate::Settings::default().start, Instant::now());
    Clock::from_fn(move || start + begun.elapsed())
}

/// Makes the folder ready: a new one, or one that an earlier demo made.
fn prepare(dir: &Path) -> anyhow::Result<()> {
    let config = dir.join("vinculo.toml");
    if fs::read_to_string(&config).is_ok_and(|text| text.starts_with(MADE_BY_DEMO)) {
        let state = dir.join("var/state.db");
        if let Some(pid) = store::holder(&state) {
            return Err(store::Error::Held { path: state, pid }.into());
        }
        for folder in ["var", "lake", "jobs"] {
            remove(&dir.join(folder))?;
        }
        fs::remove_file(&config)?;
    } else if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} holds something that no demo made: name another folder with --dir", dir.display());
    }
    init::write(dir)?;
    let text = fs::read_to_string(&config)?;
    let text = [
        ("budget = { requests = 75, per = \"30s\" }  ", "budget = { requests = 1000000, per = \"30s\" }"),
        ("secret_id = \"\"", &format!("secret_id = \"{SECRET_ID}\"")),
        ("secret_password = \"\"", &format!("secret_password = \"{SECRET_PASSWORD}\"")),
        ("authorization = []", &format!("authorization = [\"{AUTHORIZATION}\"]")),
        ("allow_ips = [\"3.130.254.46\", \"18.220.61.186\", \"18.223.45.212\"]", "allow_ips = [\"127.0.0.1\"]"),
        ("https://api.belvo.com", BELVO),
        ("https://widget.belvo.io/", &format!("{BELVO}/widget/")),
        ("success = \"\"", "success = \"https://demo.example/done\""),
        ("exit = \"\"", "exit = \"https://demo.example/left\""),
        ("event = \"\"", "event = \"https://demo.example/error\""),
        ("company_icon = \"\"", "company_icon = \"https://demo.example/icon.svg\""),
        ("company_logo = \"\"", "company_logo = \"https://demo.example/logo.svg\""),
        ("company_name = \"\"", "company_name = \"Demo\""),
        ("company_terms_url = \"\"", "company_terms_url = \"https://demo.example/terms\""),
        ("url = \"var/lake\"", "url = \"lake\""),
        ("publish_quiet = \"2s\"", "publish_quiet = \"500ms\""),
    ]
    .into_iter()
    .fold(text, |text, (from, to)| text.replace(from, to));
    let text = text
        .lines()
        .map(|line| if line.starts_with("pepper = ") { format!("pepper = \"{PEPPER}\"") } else { line.to_owned() });
    fs::write(&config, format!("{MADE_BY_DEMO}\n{}\n", text.collect::<Vec<_>>().join("\n")))?;
    Ok(())
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Waits until every webhook is answered and everything is published.
async fn follow(daemon: &Daemon, simulation: &Simulation, people: u32, global: &Global) -> anyhow::Result<()> {
    let (progress, total) = (Progress::of("webhooks and fetches", global), u64::from(people) * 2);
    let counting = async {
        let mut settled = daemon.settled();
        while settled.changed().await.is_ok() {
            if let Ok(backlog) = daemon.store.read(queue::backlog).await {
                let unsent = simulation.outstanding_webhooks();
                progress.set(total.saturating_sub(backlog.pending + unsent), Some(total));
            }
        }
    };
    let working = async {
        simulation.wait_until_delivered().await;
        daemon.until_idle().await
    };
    let result = tokio::select! {
        result = working => result,
        () = counting => Ok(()),
    };
    drop(progress);
    let tally = simulation.webhooks();
    if tally.given_up > 0 {
        bail!("{} of {} webhooks were not taken; the log says why", tally.given_up, tally.scheduled);
    }
    result
}

/// Says what was built, for a newcomer.
fn summarize(args: &Args, global: &Global, config: &Config, manifest: &Manifest, took: Duration) -> anyhow::Result<()> {
    let out = &mut streams::out();
    let lake = &config.lake.path;
    let form = if global.json { Form::Json } else { Form::Table };
    let ask = |question: &str| -> anyhow::Result<String> {
        let mut answer = Vec::new();
        sql::query(lake, question, form, &mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let (answer, excerpt, telling) = (ask(QUESTION)?, ask(EXCERPT)?, ask(TELLING)?);
    if global.json {
        let rows =
            |answer: &str| -> Result<Vec<serde_json::Value>, _> { answer.lines().map(serde_json::from_str).collect() };
        let (rows, features, telling) = (rows(&answer)?, rows(&excerpt)?, rows(&telling)?);
        let tables = manifest
            .tables
            .iter()
            .map(|table| (table.name.clone(), json!(table.rows)))
            .collect::<serde_json::Map<_, _>>();
        let document = json!({
            "people": args.people, "seconds": took.as_secs_f64(), "snapshot": manifest.snapshot, "tables": tables,
            "lake": lake, "duckdb": lake.join(database::FILE), "config": args.dir.join("vinculo.toml"),
            "question": QUESTION, "answer": rows, "features": features, "telling": telling,
        });
        return Ok(writeln!(out, "{document:#}")?);
    }
    let config = args.dir.join("vinculo.toml");
    // As it was called: `make demo` puts no `vinculo` into the PATH.
    let program = env::args().next().unwrap_or_else(|| "vinculo".to_owned());
    writeln!(
        out,
        "{} simulated people connected. Belvo sent a webhook for each resource of each link; every one was stored,\n\
         answered and fetched, and everything was published as snapshot {:06} in {:.1} s.\n",
        args.people,
        manifest.snapshot,
        took.as_secs_f64()
    )?;
    writeln!(out, "Tables in {}/current", lake.display())?;
    for table in &manifest.tables {
        writeln!(out, "  {:<19} {:>10} rows", table.name, grouped(table.rows))?;
    }
    writeln!(out, "\nWhere do people work, and what do they earn this year?\n\n{answer}")?;
    writeln!(out, "What a credit decision reads (credit_features, one row for each link):\n\n{excerpt}")?;
    writeln!(out, "Three people whom a list of payslips would misjudge:\n\n{telling}")?;
    writeln!(out, "Try next:")?;
    writeln!(out, "  {program} sql --config {} \"SELECT * FROM employments LIMIT 5\"", config.display())?;
    writeln!(out, "  {program} sql --config {} \"SELECT * FROM data_dictionary\"", config.display())?;
    let mut first = Vec::new();
    sql::query(lake, FIRST, Form::Csv, &mut first)?;
    if let Some((link, as_of)) = String::from_utf8_lossy(&first).lines().nth(1).and_then(|line| line.split_once(',')) {
        let config = config.display();
        writeln!(out, "  {program} features explain --config {config} --link {link} --as-of {as_of}")?;
    }
    writeln!(out, "  duckdb -readonly {}", lake.join(database::FILE).display())?;
    writeln!(
        out,
        "  python3 -c \"import polars as pl; print(pl.read_parquet('{}/current/salaries'))\"",
        lake.display()
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::widget::{self, SessionRequest};

    #[test]
    fn what_a_demo_writes_is_right_and_opens_the_simulated_widget() {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path()).unwrap();
        let file = folder.path().join("vinculo.toml");
        let config = Config::load(Some(&file), [], &[], Needs { belvo: true, webhook: true }).unwrap();
        let request = SessionRequest { external_id: "user-1".to_owned(), ..SessionRequest::default() };
        assert_eq!(widget::check(&request, &config.widget), Ok(()));
        assert_eq!(config.belvo.widget_url.as_str(), "http://127.0.0.1:8090/widget/");
        // The next one replaces it.
        prepare(folder.path()).unwrap();
    }
}
