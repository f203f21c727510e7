//! One person is erased: nothing of them is left anywhere, everybody else is as before, and nothing brings them back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use vinculo::config::{Config, Needs};
use vinculo::resources;
use vinculo::simulate::{SECRET_ID, SECRET_PASSWORD};
use vinculo::store::{Error, Readers, WebhookPlace};
use vinculo::subject::{Bodies, Subject, each_body};

use crate::binary::{Ended, Simulate, Site, free_address, run, vinculo};
use crate::harness::{ANY_PORT, AUTHORIZATION, PEPPER, Running, TOKEN};
use crate::scripted::{Answer, Belvo, EMPLOYMENTS, OWNERS};
use crate::tables::{self, Row, Tables};

const PEOPLE: u64 = 40;

/// A site with everybody published, and one of them who is to go.
struct Scene {
    site: Site,
    simulate: Simulate,
    link: String,
    needles: BTreeSet<String>,
}

impl Scene {
    async fn set(environment: &[(&str, &str)]) -> (Self, crate::binary::Served) {
        let belvo = free_address();
        let site = Site::new(belvo, environment);
        let served = site.serve();
        let (people, webhook) = (PEOPLE.to_string(), site.webhook_url());
        let arguments = [
            "--people",
            &people,
            "--no-limit",
            "--pepper",
            PEPPER,
            "--webhook-latency",
            "100ms",
            "--webhook",
            &webhook,
            "--webhook-authorization",
            AUTHORIZATION,
        ];
        let simulate = Simulate::start(belvo, &arguments);
        simulate.tell("connect", "").await;
        until_idle(&site);
        let (link, needles) = somebody(&simulate).await;
        (Self { site, simulate, link, needles }, served)
    }

    fn command(&self, arguments: &[&str]) -> Ended {
        run(&mut self.site.command(arguments))
    }

    fn tables(&self) -> Tables {
        tables::from_duckdb(&self.site.lake())
    }

    /// The link is updated by its user, read again, part of a decision, and asked to be deleted.
    fn leaves_traces_in_every_table(&self) {
        let link = self.link.as_str();
        let done = |arguments: &[&str]| {
            let ended = self.command(arguments);
            assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.err);
        };
        let row = self.tables()["links"].iter().find(|row| row["link_id"].as_deref() == Some(link)).unwrap().clone();
        done(&["widget", "--external-id", row["external_id"].as_deref().unwrap(), "--link", link]);
        done(&["refresh", "--link", link, "--recollect", "--yes"]);
        done(&["features", "--as-of", "2026-11-20", "--mode", "retro"]);
        let state = rusqlite::Connection::open(self.site.folder.path().join("var/state.db")).unwrap();
        state.busy_timeout(Duration::from_secs(10)).unwrap();
        let kept = format!("{{\"link_id\":\"{link}\",\"income_last_brl\":\"1.0000\"}}");
        state
            .execute(
                "INSERT INTO frozen_features VALUES ('d-1', ?1, '2026-11-20', 'retro', 7, ?2)",
                (link, kept.as_bytes()),
            )
            .unwrap();
        // Who ordered that is asked for by the decision.
        state
            .execute("INSERT INTO runs (kind, name, reason, started_at) VALUES ('freeze', 'd-1', 'api', 7)", [])
            .unwrap();
        // A wish that Belvo refused: the link is still there.
        state.execute("INSERT INTO deletions (link_id, asked_at) VALUES (?1, 7)", [link]).unwrap();
    }

    /// What the audit says of what was asked for `link` and read out of it.
    async fn audit(&self, link: &str) -> Vec<Value> {
        let url = format!("http://{}/v1/audit?link={link}", self.site.admin);
        let answer = reqwest::Client::new().get(url).bearer_auth(TOKEN).send().await.unwrap();
        let page: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        let lines = page["lines"].as_array().unwrap().iter();
        lines.filter(|line| line["action"] == "export").cloned().collect()
    }

    /// Where a canary is found among state and lake, raw and decoded.
    fn hits(&self) -> Vec<String> {
        hits(self.site.folder.path(), &self.needles)
    }
}

fn until_idle(site: &Site) {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let status = site.status();
        if status["waiting"] == 0 && status["snapshot"]["rows"]["links"] == PEOPLE {
            return;
        }
        assert!(Instant::now() < deadline, "{status:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A link whose owner has worked for a person, when there is one, with everything that must not be found of it.
async fn somebody(simulate: &Simulate) -> (String, BTreeSet<String>) {
    let links: Value = serde_json::from_str(&simulate.ask("links").await).unwrap();
    let mut best = None;
    for link in links.as_array().unwrap() {
        let id = link["link"].as_str().unwrap().to_owned();
        let mut needles = BTreeSet::from([id.clone()]);
        for owner in list(simulate, OWNERS, &id).await {
            for field in ["id", "display_name", "email", "phone_number", "internal_identification"] {
                needles.extend(text(&owner[field]));
            }
            needles.extend(text(&owner["document_id"]["document_number"]).iter().flat_map(|cpf| spellings(cpf)));
        }
        let mut has_person = false;
        for job in list(simulate, EMPLOYMENTS, &id).await {
            let employer = &job["employer_data"];
            if let Some(code) = text(&employer["code"]).filter(|code| code.len() == 11) {
                has_person = true;
                needles.extend(spellings(&code));
                needles.extend(text(&employer["name"]));
            }
        }
        if has_person || best.is_none() {
            best = Some((id, needles));
        }
        if has_person {
            break;
        }
    }
    let (link, mut needles) = best.unwrap();
    let url = format!("http://{}/api/links/{link}/", simulate.address);
    let answer = reqwest::Client::new().get(&url).basic_auth(SECRET_ID, Some(SECRET_PASSWORD)).send().await.unwrap();
    let object: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    needles.extend(text(&object["external_id"]));
    assert!(needles.len() >= 7, "{needles:?}");
    (link, needles)
}

async fn list(simulate: &Simulate, path: &str, link: &str) -> Vec<Value> {
    let url = format!("http://{}{path}?link={link}&page_size=1000", simulate.address);
    let answer = reqwest::Client::new().get(&url).basic_auth(SECRET_ID, Some(SECRET_PASSWORD)).send().await.unwrap();
    let page: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    page["results"].as_array().unwrap().clone()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| text.len() >= 8).map(str::to_owned)
}

fn spellings(code: &str) -> Vec<String> {
    let digits: String = code.chars().filter(char::is_ascii_digit).collect();
    let dotted = format!("{}.{}.{}-{}", &digits[..3], &digits[3..6], &digits[6..9], &digits[9..]);
    let dashed = format!("{}-{}", &digits[..9], &digits[9..]);
    vec![digits, dotted, dashed]
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.extend(files_below(&entry.path()));
        } else if entry.file_type().unwrap().is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    files
}

/// Where a needle is in a byte of state or lake, or in what they hold once it is decoded.
fn hits(site: &Path, needles: &BTreeSet<String>) -> Vec<String> {
    let mut hits = Vec::new();
    let mut look = |place: String, bytes: &[u8]| {
        for needle in needles {
            if memchr::memmem::find(bytes, needle.as_bytes()).is_some() {
                hits.push(format!("{needle:?} in {place}"));
            }
        }
    };
    for file in files_below(&site.join("var")).into_iter().chain(files_below(&site.join("lake"))) {
        look(file.display().to_string(), &fs::read(&file).unwrap());
    }
    for snapshot in fs::read_dir(site.join("lake/snapshots")).unwrap() {
        let snapshot = snapshot.unwrap().path();
        let connection = tables::connect(&snapshot.join("vinculo.duckdb"));
        let names = tables::query_sql(&connection, "SELECT table_name FROM duckdb_tables() WHERE NOT temporary");
        assert!(names.len() > tables::ALL.len(), "{names:?}");
        for table in names.iter().filter_map(|row| row["table_name"].as_deref()) {
            let rows = tables::query(&connection, table);
            look(format!("{table} of {}", snapshot.display()), format!("{rows:?}").as_bytes());
        }
        for file in tables::parquet_files(&snapshot) {
            let sql = format!("SELECT * FROM read_parquet('{}', hive_partitioning = false)", file.display());
            look(file.display().to_string(), format!("{:?}", tables::query_sql(&connection, &sql)).as_bytes());
        }
    }
    let config = Config::load(Some(&site.join("vinculo.toml")), [], &[], Needs::default()).unwrap();
    let mut bodies = 0;
    let read: Result<(), Error> = Readers::configured(&config.state).read(|tx| {
        for resource in resources::ALL {
            each_body(tx, Bodies::OfResource(resource.name), |place, body| {
                bodies += 1;
                look(format!("a body of {}", place.resource), body.as_bytes());
                Ok(())
            })?;
        }
        tx.each("SELECT link_id, received_at, body FROM webhooks", &[], |row| {
            let link_id = row.opt_text(0)?;
            let place = WebhookPlace { link_id: link_id.as_deref(), received_at: row.int(1)? };
            look("a webhook".to_owned(), &place.open(tx, row.bytes(2)?)?);
            Ok(())
        })
    });
    read.unwrap();
    assert!(bodies >= PEOPLE, "{bodies} bodies");
    hits
}

/// The tables without the rows of `link`.
fn without(found: &Tables, link: &str) -> Tables {
    let is_other = |row: &&Row| row["link_id"].as_deref() != Some(link);
    found.iter().map(|(name, rows)| (name.clone(), rows.iter().filter(is_other).cloned().collect())).collect()
}

/// A copy of the site's folder, with hard links as plain files.
fn copy(site: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-a").arg(site.join(".")).arg(folder.path()).status().unwrap();
    assert!(copied.success());
    folder
}

fn command_in(site: &Path, arguments: &[&str]) -> Command {
    let mut command = vinculo();
    command.args(arguments).arg("--config").arg(site.join("vinculo.toml"));
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_else_opens_the_state_leaves_the_daemons_log_alone() {
    let (scene, served) = Scene::set(&[]).await;
    let state = scene.site.folder.path().join("var/state.db");
    let log = || fs::metadata(state.with_file_name("state.db-wal")).map(|log| log.ino()).ok();
    let open_and_close = |when: &str| {
        let before = log();
        assert!(before.is_some(), "{when}: the daemon has no log");
        let connection = rusqlite::Connection::open(&state).unwrap();
        let links: i64 = connection.query_row("SELECT count(*) FROM links", [], |row| row.get(0)).unwrap();
        assert!(links + 1 >= PEOPLE.cast_signed(), "{links}");
        // Whoever finds that nobody else has the state open moves the log into it, and removes the log.
        drop(connection);
        assert_eq!(log(), before, "{when}: the daemon's log was removed under it");
    };
    open_and_close("after the start");
    let erased = scene.command(&["erase", "--link", &scene.link, "--reason", "ticket 7"]);
    assert_eq!(erased.code, Some(0), "{}", erased.err);
    open_and_close("after an erasure");
    let made = scene.command(&["backup", scene.site.folder.path().join("made.backup").to_str().unwrap()]);
    assert_eq!(made.code, Some(0), "{}", made.err);
    open_and_close("after a backup");
    assert_eq!(served.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_an_erased_person_is_left_and_nothing_brings_them_back() {
    let (scene, served) = Scene::set(&[]).await;
    scene.leaves_traces_in_every_table();
    let before = scene.tables();
    let (link, folder) = (scene.link.as_str(), scene.site.folder.path());
    let backup = folder.join("before.backup");
    let made = scene.command(&["backup", backup.to_str().unwrap()]);
    assert_eq!(made.code, Some(0), "{}", made.err);
    // One that was not understood names the link where nobody looks for it.
    scene.site.webhook(&format!("{{\"webhook_type\": \"PLANETS\", \"about\": \"{link}\"}}")).await;
    // So do two that name a user: this one, and one whose name begins alike.
    let user =
        before["links"].iter().find(|row| row["link_id"].as_deref() == Some(link)).unwrap()["external_id"].clone();
    let user = user.unwrap();
    scene.site.webhook(&format!("{{\"webhook_type\": \"PLANETS\", \"external_id\": \"{user}\"}}")).await;
    assert!(!scene.hits().is_empty(), "the canaries are nowhere even before");

    let dry = scene.command(&["erase", "--link", link, "--reason", "ticket 7", "--dry-run"]);
    assert!(dry.code == Some(0) && dry.out.contains(link) && dry.out.contains("before.backup"), "{dry:?}");
    tables::assert_same(&scene.tables(), &before, &[]);

    let told = scene.command(&["subject", "--link", link]);
    assert_eq!(told.code, Some(0), "{}", told.err);
    // Each but the spellings of a CPF that Belvo did not use.
    let lacks = scene.needles.iter().filter(|needle| !told.out.contains(needle.as_str())).count();
    let cpfs = scene.needles.iter().filter(|needle| needle.len() == 14).count();
    assert_eq!(lacks, 2 * cpfs, "the export lacks something of the person");
    let held: Value = serde_json::from_str(&told.out).unwrap();
    let strange = held["state"]["webhooks"].as_array().unwrap().iter().filter(|row| row["link_id"].is_null());
    let strange: Vec<_> =
        strange.map(|row| (row["body"]["about"].as_str(), row["body"]["external_id"].as_str())).collect();
    let expected = [(Some(link), None), (None, Some(user.as_str()))];
    assert_eq!(strange, expected, "a webhook that nobody understood is missing, or is another's");
    let exported = scene.audit(link).await;
    assert_eq!(exported.len(), 1, "{exported:?}");
    assert_eq!((&exported[0]["action"], &exported[0]["detail"]["asked_for"]), (&"export".into(), &"link".into()));
    assert!(!exported[0].to_string().contains(link), "{exported:?}");
    let others: Vec<String> = before["links"].iter().filter_map(|row| row["link_id"].clone()).collect();
    assert!(others.iter().filter(|other| *other != link).all(|other| !told.out.contains(other)), "it tells of others");

    let erased = scene.command(&["erase", "--link", link, "--reason", "ticket 7", "--json"]);
    assert_eq!(erased.code, Some(0), "{}", erased.err);
    let said: Value = serde_json::from_str(&erased.out).unwrap();
    let receipt = &said["receipt"];
    assert!(receipt["rows"]["record_versions"].as_u64() >= Some(2), "{receipt:#}");
    for table in ["link_keys", "widget_sessions", "recollects", "deletions", "frozen_features"] {
        assert_eq!(receipt["rows"][table], 1, "{table}: {receipt:#}");
    }
    assert_eq!(receipt["traces_left"], 0);
    let left = scene.command(&["webhooks", "list", "--outcome", "quarantined", "--json"]);
    assert_eq!((left.code, left.out.as_str()), (Some(0), ""));
    let state = rusqlite::Connection::open(folder.join("var/state.db")).unwrap();
    let named = "SELECT count(*) FROM runs WHERE name = 'd-1'";
    assert_eq!(state.query_row(named, [], |row| row.get::<_, i64>(0)).unwrap(), 0, "a run names the decision");
    drop(state);
    assert!(receipt["snapshots"][0]["files"].as_array().unwrap().len() >= 7, "{receipt:#}");
    assert!(receipt["backups"][0]["file"].as_str().unwrap().ends_with("before.backup"));
    assert_eq!(scene.hits(), Vec::<String>::new());
    let expected = without(&before, link);
    tables::assert_same(&scene.tables(), &expected, &["is_stale"]);
    assert!(fs::read_to_string(said["files"][1].as_str().unwrap()).unwrap().contains("ticket 7"));

    // A late webhook is answered, counted, and brings nothing back; neither do an operator and Belvo's list.
    let late = format!(
        "{{\"webhook_id\": \"0\", \"webhook_type\": \"EMPLOYMENTS\", \"webhook_code\": \"historical_update\", \
         \"link_id\": \"{link}\", \"data\": {{\"total_employments\": 3}}}}"
    );
    assert_eq!(scene.site.webhook(&late).await.0, 200);
    // Nor does one that nobody understands.
    scene.site.webhook(&format!("{{\"webhook_type\": \"PLANETS\", \"about\": \"{link}\"}}")).await;
    assert_eq!(scene.command(&["links", "sync"]).code, Some(0));
    for order in [
        &["refresh", "--link", link][..],
        &["refresh", "--link", link, "--recollect", "--yes"],
        &["links", "delete", "--link", link, "--remote"],
        &["widget", "--external-id", "somebody-else", "--link", link],
        &["links", "show", link],
        &["subject", "--link", link],
        &["erase", "--link", link, "--reason", "once more"],
    ] {
        let refused = scene.command(order);
        assert!(!matches!(refused.code, None | Some(0)), "{order:?}: {refused:?}");
    }
    let status = scene.site.status();
    assert_eq!((&status["waiting"], &status["links"]), (&Value::from(0), &Value::from(PEOPLE - 1)));
    assert_eq!(status["webhooks"]["erased"], 2, "{status:#}");
    let erased = scene.command(&["webhooks", "list", "--outcome", "erased", "--json"]);
    assert_eq!((erased.code, erased.out.lines().count()), (Some(0), 2), "{}{}", erased.out, erased.err);
    assert_eq!(scene.hits(), Vec::<String>::new());

    // Neither does a backup from before, and one from after never had them.
    let after = folder.join("after.backup");
    assert_eq!(scene.command(&["backup", after.to_str().unwrap()]).code, Some(0));
    let bytes = fs::read(&after).unwrap();
    assert!(scene.needles.iter().all(|needle| memchr::memmem::find(&bytes, needle.as_bytes()).is_none()));
    assert_eq!(scene.command(&["restore", backup.to_str().unwrap()]).code, Some(8), "the state is held");
    assert_eq!(served.terminate(), Some(0));
    let bytes = fs::read(&backup).unwrap();
    for (name, bad) in [("cut", bytes[..bytes.len() - 100].to_vec()), ("half", bytes[..bytes.len() / 2].to_vec())] {
        let file = folder.join(name);
        fs::write(&file, bad).unwrap();
        let refused = scene.command(&["restore", file.to_str().unwrap()]);
        assert_eq!(refused.code, Some(9), "{}", refused.err);
    }
    let restored = scene.command(&["restore", backup.to_str().unwrap(), "--json"]);
    assert_eq!(restored.code, Some(0), "{}", restored.err);
    let restored: Value = serde_json::from_str(&restored.out).unwrap();
    assert_eq!(restored["restored"]["erased_again"], 1);
    // Without a daemon the export is noted as well.
    let lines = || {
        let state = rusqlite::Connection::open(folder.join("var/state.db")).unwrap();
        state.query_row("SELECT count(*) FROM audit WHERE action = 'export'", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let before_it = lines();
    let other = scene.tables()["links"][0]["link_id"].clone().unwrap();
    assert_eq!(scene.command(&["subject", "--link", &other]).code, Some(0));
    assert_eq!(lines(), before_it + 1);
    assert_eq!(scene.hits(), Vec::<String>::new());
    tables::assert_same(&scene.tables(), &expected, &["is_stale"]);
    let whole = scene.command(&["verify"]);
    assert_eq!(whole.code, Some(0), "{}", whole.out);
    drop(scene.simulate);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_that_is_killed_anywhere_is_finished_at_the_next_start() {
    let (scene, served) = Scene::set(&[]).await;
    assert_eq!(served.terminate(), Some(0));
    let (before, link) = (scene.tables(), scene.link.as_str());
    let expected = without(&before, link);
    let erase = ["erase", "--link", link, "--reason", "ticket 8"];
    let whole = copy(scene.site.folder.path());
    let started = Instant::now();
    assert_eq!(run(&mut command_in(whole.path(), &erase)).code, Some(0));
    let took = started.elapsed();
    assert_eq!(hits(whole.path(), &scene.needles), Vec::<String>::new());

    let kills = 20;
    let mut resumed = 0;
    for kill in 0..kills {
        let folder = copy(scene.site.folder.path());
        let mut child = command_in(folder.path(), &erase).stderr(std::process::Stdio::null()).spawn().unwrap();
        // Kills are spread over the time that it takes; what they hit is told below.
        std::thread::sleep(took * (kill + 1) / (kills + 2));
        let _ = child.kill();
        child.wait().unwrap();
        let next = run(&mut command_in(folder.path(), &["publish"]));
        assert_eq!(next.code, Some(0), "{}", next.err);
        let is_resumed = next.err.contains("erasure_resumed");
        resumed += u32::from(is_resumed);
        let found = tables::from_duckdb(&folder.path().join("lake"));
        if !is_resumed && found["links"].len() == before["links"].len() {
            // It came before the wish was noted, and nothing is lost by that.
            tables::assert_same(&found, &before, &[]);
            assert_eq!(run(&mut command_in(folder.path(), &erase)).code, Some(0));
        }
        assert_eq!(hits(folder.path(), &scene.needles), Vec::<String>::new(), "kill {kill}, resumed: {is_resumed}");
        tables::assert_same(&tables::from_duckdb(&folder.path().join("lake")), &expected, &["is_stale"]);
    }
    println!("{resumed} of {kills} erasures were interrupted, of {took:?}");
    assert!(resumed >= 5, "only {resumed} of {kills} kills hit an erasure at work");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_that_cannot_be_written_is_written_as_soon_as_it_can() {
    let (scene, served) = Scene::set(&[]).await;
    assert_eq!(served.terminate(), Some(0));
    let state = scene.site.folder.path().join("var/state.db");
    let receipts = state.with_file_name("erasures");
    fs::write(&receipts, "no folder").unwrap();
    let failed = scene.command(&["erase", "--link", &scene.link, "--reason", "ticket 9"]);
    assert!(failed.code != Some(0) && failed.err.contains("finishes the erasure"), "{failed:?}");
    fs::remove_file(&receipts).unwrap();
    let next = scene.command(&["publish"]);
    assert!(next.code == Some(0) && next.err.contains("erasure_resumed"), "{next:?}");
    assert_eq!(fs::read_dir(&receipts).unwrap().count(), 2);
    let told = "SELECT count(*) FROM audit WHERE action = 'erase'";
    let told: i64 = rusqlite::Connection::open(&state).unwrap().query_row(told, [], |row| row.get(0)).unwrap();
    assert_eq!(told, 1);
    assert_eq!(scene.hits(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_in_any_published_file_is_named_and_a_rebuild_mends_it() {
    let (scene, served) = Scene::set(&[("VINCULO_LAKE__LINK_BUCKETS", "16")]).await;
    assert_eq!(served.terminate(), Some(0));
    let before = scene.tables();
    let whole = scene.command(&["verify", "--json"]);
    assert_eq!(whole.code, Some(0), "{}", whole.out);

    let current = fs::canonicalize(scene.site.lake().join("current")).unwrap();
    let files: Vec<PathBuf> = files_below(&current).into_iter().rev().take(60).collect();
    assert!(files.len() >= 50, "{} files", files.len());
    for (number, file) in files.iter().enumerate() {
        let mut bytes = fs::read(file).unwrap();
        let bit = (number * 7919) % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::remove_file(file).unwrap();
        fs::write(file, bytes).unwrap();
    }
    let damaged = scene.command(&["verify", "--json"]);
    assert_eq!(damaged.code, Some(9), "{}", damaged.out);
    let report: Value = serde_json::from_str(&damaged.out).unwrap();
    let named: BTreeMap<&str, &str> = report["damage"]
        .as_array()
        .unwrap()
        .iter()
        .map(|damage| (damage["file"].as_str().unwrap(), damage["code"].as_str().unwrap()))
        .collect();
    for file in &files {
        let name = file.strip_prefix(fs::canonicalize(scene.site.lake()).unwrap()).unwrap();
        assert!(named.contains_key(name.to_str().unwrap()), "{} is not among {named:#?}", name.display());
    }
    let rebuilt = scene.command(&["rebuild"]);
    assert_eq!(rebuilt.code, Some(0), "{}", rebuilt.err);
    tables::assert_same(&scene.tables(), &before, &["is_stale"]);
    let whole = scene.command(&["verify"]);
    assert_eq!(whole.code, Some(0), "{}", whole.out);

    // Pages of the state itself, once its log is in it.
    let state = scene.site.folder.path().join("var/state.db");
    let connection = rusqlite::Connection::open(&state).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)).unwrap();
    drop(connection);
    let mut bytes = fs::read(&state).unwrap();
    for page in (10..bytes.len() / 4096).step_by(10) {
        bytes[page * 4096..page * 4096 + 64].fill(0xff);
    }
    fs::write(&state, bytes).unwrap();
    let damaged = scene.command(&["verify"]);
    assert!(damaged.code == Some(9) && damaged.out.contains("state.db"), "{damaged:?}");
    drop(scene.simulate);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_key_is_refused_and_a_new_one_takes_over() {
    let (scene, served) = Scene::set(&[]).await;
    assert_eq!(served.terminate(), Some(0));
    let (new, other) = ("bmV3LW5ldy1uZXctbmV3LW5ldy1uZXctbmV3LW5ldyE=", "b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItLS0=");
    let with = |keys: &[(&str, &str)]| run(scene.site.command(&["rebuild"]).envs(keys.iter().copied()));
    let state = scene.site.folder.path().join("var/state.db");
    let before = fs::read(&state).unwrap();
    for keys in [[("VINCULO_STATE__ENCRYPTION_KEY", other)], [("VINCULO_STATE__ENCRYPTION_KEY", "")]] {
        let refused = with(&keys);
        assert!(refused.code == Some(4) && refused.err.contains("state.encryption_key"), "{refused:?}");
        assert!(fs::read(&state).unwrap() == before, "the state was written");
    }
    let rotated = with(&[
        ("VINCULO_STATE__ENCRYPTION_KEY", new),
        ("VINCULO_STATE__ENCRYPTION_KEY_PREVIOUS", crate::harness::ENCRYPTION_KEY),
    ]);
    assert_eq!(rotated.code, Some(0), "{}", rotated.err);
    assert_eq!(with(&[("VINCULO_STATE__ENCRYPTION_KEY", new)]).code, Some(0));
    assert_eq!(with(&[]).code, Some(4), "the old key opens it no more");
    drop(scene.simulate);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unmasked_rows_are_for_their_owner_alone_and_only_when_asked_for() {
    let (scene, served) = Scene::set(&[("VINCULO_PII__PUBLISH", "true")]).await;
    assert_eq!(served.terminate(), Some(0));
    let before = scene.tables();
    let current = fs::canonicalize(scene.site.lake().join("current")).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let rows = |table: &str| -> Vec<Row> {
        let files = tables::parquet_files(&current.join("pii").join(table));
        assert!(files.iter().all(|file| mode(file) == 0o400 && mode(file.parent().unwrap()) == 0o700), "{table}");
        files.iter().flat_map(|file| tables::read_parquet(file)).collect()
    };
    assert_eq!(mode(&current.join("pii")), 0o700);
    let (owners, history, employers) = (rows("owners"), rows("owners_history"), rows("employers"));
    assert_eq!(owners.len(), before["owners"].len());
    for masked in &before["owners"] {
        let twin = owners.iter().find(|twin| masked.iter().all(|(name, value)| twin.get(name) == Some(value)));
        let twin = twin.unwrap_or_else(|| panic!("no twin of {masked:?}"));
        assert_eq!(
            twin["email"].as_ref().is_some_and(|email| !email.is_empty()),
            masked["has_email"].as_deref() == Some("true")
        );
        assert!(twin["display_name"].is_some());
    }
    let name =
        owners.iter().find(|row| row["link_id"].as_deref() == Some(&scene.link)).unwrap()["display_name"].clone();
    assert!(scene.needles.contains(&name.unwrap()));
    assert!(history.len() >= owners.len() && history.iter().all(|row| row["display_name"].is_some()));
    let persons =
        before["employments"].iter().filter(|row| row["employer_code_type"].as_deref() == Some("CPF")).count();
    assert_eq!(employers.len(), persons);
    assert!(employers.iter().all(|row| row["employer_code"].is_some()));
    assert_eq!(scene.command(&["verify"]).code, Some(0));
    assert!(!fs::read(current.join("vinculo.duckdb")).unwrap().windows(4).any(|bytes| bytes == b"pii/"));

    let erased = scene.command(&["erase", "--link", &scene.link, "--reason", "ticket 9"]);
    assert_eq!(erased.code, Some(0), "{}", erased.err);
    assert_eq!(scene.hits(), Vec::<String>::new());
    let current = fs::canonicalize(scene.site.lake().join("current")).unwrap();
    let left: Vec<Row> =
        tables::parquet_files(&current.join("pii/owners")).iter().flat_map(|file| tables::read_parquet(file)).collect();
    assert!(left.len() < owners.len() && left.iter().all(|row| row["link_id"].as_deref() != Some(&scene.link)));

    let without = run(scene.site.command(&["publish"]).env("VINCULO_PII__PUBLISH", "false"));
    assert_eq!(without.code, Some(0), "{}", without.err);
    assert!(!scene.site.lake().join("current/pii").exists(), "it was switched off");
    drop(scene.simulate);
}

const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

/// A daemon that tracks [`LINK`], and was asked to erase it at Belvo too, and nothing of that is done.
async fn asked_to_erase_at_belvo(belvo: &Belvo) -> Running {
    belvo.has_link(LINK, format!(r#"{{"id":"{LINK}","status":"valid","access_mode":"recurrent"}}"#));
    let running = Running::start(belvo.address, &[]).await;
    let told = format!(
        r#"{{"webhook_type":"OWNERS","webhook_code":"historical_update","link_id":"{LINK}","data":{{"total_owners":0}}}}"#
    );
    assert_eq!(running.webhook(&told).await, 200);
    running.until_idle().await;
    let eraser = &running.daemon.operations.eraser;
    let plan = eraser.plan(Subject::Link(LINK.parse().unwrap())).await.unwrap();
    let wish = eraser.wish(&plan, "ticket 10", true).await.unwrap();
    running.daemon.store.write(move |tx| wish.keep(tx)).await.unwrap();
    running
}

async fn count(running: &Running, sql: &'static str) -> i64 {
    running.daemon.store.read(move |tx| tx.one(sql, &[], |row| row.int(0))).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_that_waits_for_belvo_keeps_no_daemon_from_starting_and_is_taken_back_when_belvo_refuses() {
    let belvo = Belvo::start().await;
    let running = asked_to_erase_at_belvo(&belvo).await;

    // Whoever calls here is never answered.
    let silent = TcpListener::bind(ANY_PORT).unwrap();
    let starting = running.restart(silent.local_addr().unwrap(), &[]);
    let running = tokio::time::timeout(Duration::from_mins(1), starting).await.expect("the start waits for Belvo");
    let health = format!("http://{}/healthz", running.daemon.admin_address.unwrap());
    assert_eq!(reqwest::get(health).await.unwrap().status().as_u16(), 200);
    let asked = "SELECT count(*) FROM erasures WHERE step = 'asked'";
    assert_eq!(count(&running, asked).await, 1, "nobody refused it");

    let refusal =
        r#"[{"code":"access_to_resource_denied","message":"no","request_id":"b5d0106ac9cc43d5b36199fe831f6bbe"}]"#;
    let denied = Answer { status: 403, headers: Vec::new(), body: refusal.to_owned() };
    belvo.says_next(&format!("/api/links/{LINK}/"), denied);
    let running = running.restart(belvo.address, &[]).await;
    let deadline = Instant::now() + Duration::from_mins(1);
    while count(&running, asked).await > 0 {
        assert!(Instant::now() < deadline, "the wish stands although Belvo refused it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(
        count(&running, "SELECT count(*) FROM links WHERE status = 'valid'").await,
        1,
        "the link works as before"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_that_waits_for_belvo_is_finished_beside_the_listeners() {
    let belvo = Belvo::start().await;
    let running = asked_to_erase_at_belvo(&belvo).await;
    // Belvo does not know the link any more.
    let gone = r#"[{"code":"not_found","message":"Not found","request_id":"b5d0106ac9cc43d5b36199fe831f6bbe"}]"#;
    for _ in 0..2 {
        let unknown = Answer { status: 404, headers: Vec::new(), body: gone.to_owned() };
        belvo.says_next(&format!("/api/links/{LINK}/"), unknown);
    }
    let running = running.restart(belvo.address, &[]).await;
    let deadline = Instant::now() + Duration::from_mins(1);
    while count(&running, "SELECT count(*) FROM erasures WHERE step = 'done'").await == 0 {
        assert!(Instant::now() < deadline, "the erasure is not finished");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(count(&running, "SELECT count(*) FROM links").await, 0);
}
