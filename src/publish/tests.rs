//! Publishing, from a state into a folder.

use std::fs;
use std::os::unix::fs::MetadataExt;

use tokio_util::sync::CancellationToken;

use super::pace::LAST_RETRY;
use super::*;
use crate::clock::Hand;
use crate::config::LakeForm::{self, Duckdb, Parquet};
use crate::features::{self, runs};
use crate::flatten::Comparison;
use crate::link_id::LinkId;
use crate::problems::Problems;
use crate::queue::{self, Trigger};
use crate::records::{self, Drift, Listing, Record};
use crate::resources::{employments, owners};
use crate::sinks::parquet::read_texts;
use crate::store::{Tx, args};

/// A state without links, and the lake of it.
struct Place {
    folder: tempfile::TempDir,
    store: Store,
    hand: Hand,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        Self { folder, store, hand: Hand::at(Timestamp::from_micros(1_000_000_000)) }
    }

    fn lake(&self) -> PathBuf {
        self.folder.path().join("lake")
    }

    fn publisher(&self, sinks: &[LakeForm]) -> Publisher {
        self.publisher_of(&self.store, sinks)
    }

    fn publisher_of(&self, store: &Store, sinks: &[LakeForm]) -> Publisher {
        let settings = config::Lake::small(self.lake(), sinks);
        let clock = self.hand.clock();
        Publisher::open(store.clone(), settings, Duration::from_hours(1), None, clock).unwrap()
    }
}

/// Asks for features of a date that is over, corrections included.
async fn ask_for_features(place: &Place, as_of: &str) {
    let now = place.hand.clock().now();
    let wanted = runs::Wanted { as_of: Some(as_of.parse().unwrap()), mode: runs::Mode::Retro, lag_months: 0 };
    place.store.attempt(move |tx| runs::record(tx, wanted, now)).await.unwrap();
}

async fn add_link(store: &Store, number: u32) {
    let link = format!("{number:08}-0000-4000-8000-000000000000");
    let insert = "INSERT INTO links (link_id, first_seen_at, changed_seq) VALUES ($1, 0, $2)";
    store.write(move |tx| tx.execute(insert, args![&link, tx.change()?])).await.unwrap();
}

/// Publishes from a thread that may block, as it is in the daemon.
fn publish(publisher: &Publisher, scope: Scope) -> Result<Option<Manifest>, Error> {
    std::thread::scope(|threads| threads.spawn(|| publisher.publish(scope)).join().unwrap())
}

fn code(published: Result<Option<Manifest>, Error>) -> &'static str {
    published.err().map_or("none", |error| error.code())
}

#[tokio::test]
async fn another_state_replaces_no_row_of_a_lake_unless_it_is_told_to() {
    let place = Place::new();
    let publisher = place.publisher(&[Parquet]);
    publish(&publisher, Scope::Changed).unwrap().unwrap();
    add_link(&place.store, 1).await;
    let other = Store::open(&place.folder.path().join("other.db")).unwrap();
    let another = place.publisher_of(&other, &[Parquet]);
    publish(&another, Scope::Changed).unwrap().expect("no row was there to be lost");
    publish(&publisher, Scope::Changed).unwrap().expect("nor is one now");
    assert_eq!(code(publish(&another, Scope::Changed)), "foreign_lake");
    assert_eq!(publisher.lake.current().unwrap().table("links").unwrap().rows, 1);
    publish(&another, Scope::Everything).unwrap().unwrap();
    assert_eq!(publisher.lake.current().unwrap().table("links").unwrap().rows, 0);
}

/// Lists a job of `number`'s link, as Belvo gave it in `minutes`.
async fn list_job(store: &Store, number: u32, minutes: i64, end: &'static str) {
    let link = format!("{number:08}-0000-4000-8000-000000000000");
    let job = format!(
        r#"{{"id":"{number:08}-0000-4000-8000-00000000000a","link":"{link}","created_at":"2026-01-01T00:00:00.000Z",
        "collected_at":"2026-01-01T00:{minutes:02}:00.000Z","start_date":"2020-01-01","end_date":{end},
        "employer_data":{{"name":"EMPRESA","code":"99000042","economic_activity":null}},"occupations":[],"salaries":[]}}"#
    );
    let list = move |tx: &Tx<'_>| {
        let (link, resource): (LinkId, _) = (link.parse().unwrap(), &employments::RESOURCE);
        let at = Timestamp::from_micros(minutes * 60_000_000);
        queue::mark(tx, &link, resource, Trigger::Webhook, at)?;
        let records = vec![Record::read(resource, &link, &job).unwrap()];
        let listing = Listing { started_at: at, fetched_at: at, records, drift: Drift::default() };
        let mut comparison = Comparison::of(resource);
        let compare = &mut |old: &str, new: &str| comparison.loss(old, new);
        let kept = records::keep(tx, &link, resource, &listing, None, Duration::from_hours(1), compare)?;
        let news = "UPDATE refreshes SET content_seq = $2, sighted_seq = $2, touched_seq = $2 WHERE link_id = $1";
        tx.execute(news, args![&link, kept.change])
    };
    store.write(list).await.unwrap();
}

/// What stands in the text columns `names` of a table.
fn texts(publisher: &Publisher, table: &str, names: [&str; 2]) -> Vec<[Option<String>; 2]> {
    let mut rows = Vec::new();
    let (manifest, lake) = (publisher.lake.current().unwrap(), publisher.lake.path().join("current"));
    for file in &manifest.table(table).unwrap().files {
        let keep = |row: [Option<&str>; 2]| rows.push(row.map(|text| text.map(str::to_owned)));
        read_texts(&lake.join(&file.path), names, keep).unwrap();
    }
    rows.sort_unstable();
    rows
}

#[tokio::test]
async fn a_damaged_body_is_a_rejected_record_and_everything_else_is_published() {
    let place = Place::new();
    for number in 1..=3 {
        add_link(&place.store, number).await;
        list_job(&place.store, number, 1, "null").await;
    }
    list_job(&place.store, 1, 5, "\"2026-01-01\"").await;
    // The only version of the second, and the latest of the first.
    let damage = "UPDATE record_versions SET body = substr(body, 1, length(body) - 6) \
        WHERE (substr(link_id, 8, 1), version) IN (('1', 2), ('2', 1))";
    assert_eq!(place.store.write(move |tx| tx.execute(damage, args![])).await.unwrap(), 2);
    let publisher = place.publisher(&[Parquet]);
    publish(&publisher, Scope::Everything).unwrap().unwrap();
    let listed = texts(&publisher, "employments", ["link_id", "employer_code"]);
    let of = |number: u32| Some(format!("{number:08}-0000-4000-8000-000000000000"));
    assert_eq!(
        listed.iter().map(|[link, _]| link.clone()).collect::<Vec<_>>(),
        [of(1), of(3)],
        "the last good version stays"
    );
    assert_eq!(publisher.lake.current().unwrap().table("links").unwrap().rows, 3);
    let rejected = texts(&publisher, "rejected_records", ["link_id", "reason"]);
    let told = |number| [of(number), Some("is damaged in the state".to_owned())];
    assert_eq!(rejected, [told(1), told(2)]);
    // The next list that is new mends what readers see.
    list_job(&place.store, 2, 9, "\"2026-02-02\"").await;
    publish(&publisher, Scope::Changed).unwrap().unwrap();
    assert_eq!(texts(&publisher, "employments", ["link_id", "employer_code"]).len(), 3);
    assert_eq!(texts(&publisher, "rejected_records", ["link_id", "reason"]).len(), 2, "its history lacks a version");
}

#[tokio::test]
async fn a_lake_that_somebody_removed_has_no_snapshot() {
    let place = Place::new();
    add_link(&place.store, 1).await;
    let publisher = place.publisher(&[Parquet]);
    publish(&publisher, Scope::Changed).unwrap().unwrap();
    assert_eq!(publisher.snapshots().unwrap(), [1]);
    fs::remove_dir_all(place.lake()).unwrap();
    assert_eq!(publisher.snapshots().unwrap(), [0; 0]);
}

#[tokio::test]
async fn a_lake_that_lost_its_links_loses_nothing_else() {
    let place = Place::new();
    add_link(&place.store, 1).await;
    let publisher = place.publisher(&[Parquet]);
    for _ in 0..2 {
        publish(&publisher, Scope::Everything).unwrap().unwrap();
    }
    fs::remove_file(place.lake().join("current")).unwrap();

    let other = Store::open(&place.folder.path().join("other.db")).unwrap();
    let another = place.publisher_of(&other, &[Parquet]);
    assert_eq!(another.snapshots().unwrap(), [1, 2], "nobody can tell which of them nobody saw");
    assert_eq!(code(publish(&another, Scope::Changed)), "foreign_lake");
    let manifest = publish(&place.publisher(&[Parquet]), Scope::Changed).unwrap();
    assert_eq!(manifest.map(|manifest| manifest.snapshot), Some(3), "there is a current one again");
    assert_eq!(publisher.current(), Some(3));
}

#[tokio::test]
async fn a_lake_whose_link_names_an_older_snapshot_goes_on_from_there_and_keeps_the_newer_ones() {
    let place = Place::new();
    let publisher = place.publisher(&[Parquet]);
    for number in 1..=3 {
        add_link(&place.store, number).await;
        publish(&publisher, Scope::Changed).unwrap().unwrap();
    }
    let link = place.lake().join("current");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("snapshots/000001", &link).unwrap();
    let manifest = publish(&place.publisher(&[Parquet]), Scope::Changed).unwrap().unwrap();
    assert_eq!((manifest.snapshot, manifest.table("links").unwrap().rows), (4, 3));
    assert_eq!(publisher.snapshots().unwrap(), [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_damaged_snapshot_is_made_anew_without_anybody_asking() {
    for sinks in [&[Parquet][..], &[Parquet, Duckdb]] {
        let place = Place::new();
        let publisher = place.publisher(sinks);
        add_link(&place.store, 1).await;
        let manifest = publish(&publisher, Scope::Changed).unwrap().unwrap();
        let folder = publisher.lake.folder(manifest.snapshot).join("salaries");
        fs::remove_dir_all(&folder).unwrap();
        add_link(&place.store, 2).await;
        let manifest = publish(&publisher, Scope::Changed).unwrap().unwrap();
        assert_eq!(manifest.table("links").unwrap().rows, 2);
        assert_eq!(publisher.snapshots().unwrap(), [manifest.snapshot], "the damaged one is gone");
        assert!(integrity::check(&place.lake()).unwrap().damage.is_empty(), "{sinks:?}");
    }
}

#[tokio::test]
async fn nothing_staged_is_removed_from_a_lake_that_another_state_publishes() {
    let place = Place::new();
    add_link(&place.store, 1).await;
    publish(&place.publisher(&[Parquet]), Scope::Changed).unwrap().unwrap();
    let staged = place.lake().join(".staging/000002");
    fs::create_dir(&staged).unwrap();
    let other = Place { store: Store::open(&place.folder.path().join("other.db")).unwrap(), ..place };
    assert_eq!(code(publish(&other.publisher(&[Parquet]), Scope::Changed)), "foreign_lake");
    assert!(staged.exists());
}

#[tokio::test]
async fn a_state_that_is_older_than_the_lake_stays_so_however_far_it_counts() {
    let place = Place::new();
    let publisher = place.publisher(&[Parquet]);
    let meta = |tx: &Tx<'_>| tx.all("SELECT name, value FROM meta", args![], |row| Ok((row.text(0)?, row.text(1)?)));
    let older = place.store.read(meta).await.unwrap();
    for number in 1..=3 {
        add_link(&place.store, number).await;
    }
    publish(&publisher, Scope::Changed).unwrap().unwrap();
    let put_back = move |tx: &Tx<'_>| {
        tx.execute("DELETE FROM meta", args![])?;
        older.iter().try_for_each(|(name, value)| {
            tx.execute("INSERT INTO meta (name, value) VALUES ($1, $2)", args![name, value]).map(drop)
        })
    };
    place.store.write(put_back).await.unwrap();
    assert_eq!(code(publish(&publisher, Scope::Changed)), "state_older_than_lake");
    for number in 4..=9 {
        add_link(&place.store, number).await;
    }
    // Also after a restart.
    let publisher = place.publisher(&[Parquet]);
    assert_eq!(code(publish(&publisher, Scope::Changed)), "state_older_than_lake");
    publish(&publisher, Scope::Everything).unwrap().unwrap();
    add_link(&place.store, 10).await;
    assert_eq!(code(publish(&publisher, Scope::Changed)), "none");
}

#[tokio::test]
async fn nothing_is_written_into_the_place_of_a_volume_that_is_not_mounted() {
    let place = Place::new();
    add_link(&place.store, 1).await;
    let publisher = place.publisher(&[Parquet]);
    publish(&publisher, Scope::Changed).unwrap().unwrap();
    assert_eq!(place.lake().metadata().unwrap().mode() & 0o777, 0o750, "it is no business of strangers");
    let (lake, volume) = (place.lake(), place.folder.path().join("volume"));
    fs::rename(&lake, &volume).unwrap();
    fs::create_dir(&lake).unwrap();
    add_link(&place.store, 2).await;
    let restarted = place.publisher(&[Parquet]);
    for publisher in [&publisher, &restarted] {
        assert_eq!(code(publish(publisher, Scope::Changed)), LAKE_MISSING);
        assert!(publisher.is_missing());
    }
    assert_eq!(fs::read_dir(&lake).unwrap().count(), 0);

    fs::remove_dir(&lake).unwrap();
    fs::rename(&volume, &lake).unwrap();
    let manifest = publish(&restarted, Scope::Changed).unwrap().unwrap();
    assert_eq!((manifest.snapshot, manifest.table("links").unwrap().rows), (2, 2), "it is mounted again");
    assert!(!restarted.is_missing());

    fs::remove_dir_all(&lake).unwrap();
    let device = "UPDATE meta SET value = replace(value, ' ' || $1 || ' ', ' 7 ') WHERE name = 'last_snapshot'";
    let here = Lake::look(&lake).device().unwrap().to_string();
    place.store.write(move |tx| tx.execute(device, args![&here])).await.unwrap();
    let publisher = place.publisher(&[Parquet]);
    assert_eq!(code(publish(&publisher, Scope::Changed)), LAKE_MISSING, "what it is in was on another device");
    assert!(publisher.is_missing() && !lake.exists());
    publish(&publisher, Scope::Everything).unwrap().expect("it was ordered");

    fs::remove_dir_all(&lake).unwrap();
    let manifest = publish(&place.publisher(&[Parquet]), Scope::Changed).unwrap().unwrap();
    assert_eq!(manifest.snapshot, 1, "somebody removed it on purpose");
    fs::remove_dir_all(&lake).unwrap();
    fs::create_dir(&lake).unwrap();
    publish(&place.publisher(&[Parquet]), Scope::Everything).unwrap().expect("it was ordered");
    assert_eq!(code(publish(&place.publisher(&[Parquet]), Scope::Changed)), "none");
}

#[tokio::test]
async fn a_snapshot_that_nobody_will_see_is_not_left() {
    let place = Place::new();
    add_link(&place.store, 1).await;
    let publisher = place.publisher(&[Parquet]);
    publish(&publisher, Scope::Changed).unwrap().unwrap();
    // As a copy leaves it that follows links.
    let current = place.lake().join("current");
    fs::remove_file(&current).unwrap();
    fs::create_dir(&current).unwrap();
    for _ in 0..3 {
        assert_eq!(code(publish(&publisher, Scope::Changed)), "lake_not_writable");
    }
    assert_eq!(publisher.snapshots().unwrap(), [1]);
    fs::remove_dir(&current).unwrap();
    assert_eq!(publish(&publisher, Scope::Changed).unwrap().unwrap().snapshot, 2);
}

#[tokio::test]
async fn a_snapshot_stays_for_its_time_after_another_took_its_place_and_goes_also_when_nothing_is_new() {
    let place = Place::new();
    let mut publisher = place.publisher(&[Parquet]);
    (publisher.settings.keep_snapshots, publisher.settings.keep_for) = (2, Duration::from_hours(1));
    for number in 1..=6 {
        add_link(&place.store, number).await;
        publish(&publisher, Scope::Changed).unwrap().unwrap();
        // A quiet night comes after the first: whoever found it in the morning still reads in it.
        place.hand.pass(if number == 1 { Duration::from_hours(10) } else { Duration::from_secs(6) });
    }
    assert_eq!(publisher.snapshots().unwrap(), [1, 2, 3, 4, 5, 6]);
    place.hand.pass(publisher.settings.keep_for);
    assert!(publish(&publisher, Scope::Changed).unwrap().is_none());
    assert_eq!(publisher.snapshots().unwrap(), [5, 6]);
}

#[tokio::test]
async fn an_older_copy_of_the_lake_brings_nobody_back() {
    let place = Place::new();
    for number in 1..=200 {
        add_link(&place.store, number).await;
    }
    let publisher = place.publisher(&[Parquet]);
    publish(&publisher, Scope::Changed).unwrap().unwrap();
    let remove = |tx: &Tx<'_>| {
        tx.execute("DELETE FROM links WHERE link_id IN (SELECT link_id FROM links LIMIT 1)", args![])?;
        Departure::Removal.note(tx)
    };
    place.store.write(remove).await.unwrap();
    // The lake stands as it was before, and another link changes.
    add_link(&place.store, 201).await;
    let manifest = publish(&publisher, Scope::Changed).unwrap().unwrap();
    let links = manifest.table("links").unwrap();
    assert_eq!(links.rows, 200);
    assert!(
        links
            .files
            .iter()
            .all(|file| { place.lake().join("snapshots/000002").join(&file.path).metadata().unwrap().nlink() == 1 })
    );
}

#[tokio::test]
async fn what_has_expired_is_in_no_file_and_no_snapshot_once_it_is_published() {
    let place = Place::new();
    let publisher = place.publisher(&[Parquet, Duckdb]);
    for number in 1..=8 {
        add_link(&place.store, number).await;
        publish(&publisher, Scope::Changed).unwrap().unwrap();
    }
    let (gone, count) = ("00000003-0000-4000-8000-000000000000", publisher.snapshots().unwrap().len());
    assert_eq!(count, 8, "none is old enough to go by itself");
    let expire = move |tx: &Tx<'_>| {
        tx.execute("DELETE FROM links WHERE link_id = $1", args![gone])?;
        Departure::Expiry.note(tx)
    };
    place.store.write(expire).await.unwrap();
    add_link(&place.store, 9).await;
    let manifest = publish(&publisher, Scope::Changed).unwrap().unwrap();
    assert_eq!(publisher.snapshots().unwrap(), [manifest.snapshot]);
    let folder = publisher.lake.folder(manifest.snapshot);
    for file in manifest.files.iter().chain(&manifest.table("links").unwrap().files) {
        let bytes = fs::read(folder.join(&file.path)).unwrap();
        assert!(memchr::memmem::find(&bytes, gone.as_bytes()).is_none(), "{}", file.path);
    }
    // What is published from then on is taken over again, and stays.
    add_link(&place.store, 10).await;
    publish(&publisher, Scope::Changed).unwrap().unwrap();
    assert_eq!(publisher.snapshots().unwrap().len(), 2);
}

#[tokio::test]
async fn a_publish_that_fails_after_a_good_one_is_tried_again_in_two_seconds() {
    let place = Place::new();
    let publisher = Arc::new(place.publisher(&[Parquet]));
    let (changed, published, problems) = (watch::Sender::new(()), watch::Sender::new(0), Problems::default());
    let (mut seen, shutdown) = (published.subscribe(), CancellationToken::new());
    let pace = Pace { quiet: Duration::ZERO, max_wait: Duration::ZERO };
    tokio::spawn(run(publisher, pace, changed.subscribe(), published, problems.clone(), shutdown.clone()));
    seen.changed().await.unwrap();

    let staging = place.lake().join(".staging");
    fs::remove_dir(&staging).unwrap();
    fs::write(&staging, "no folder").unwrap();
    changed.send_replace(());
    while problems.standing().is_empty() {
        tokio::task::yield_now().await;
    }
    let failed = std::time::Instant::now();
    fs::remove_file(&staging).unwrap();
    fs::create_dir(&staging).unwrap();
    seen.changed().await.unwrap();
    assert!(failed.elapsed() < LAST_RETRY / 2, "{:?}", failed.elapsed());
    assert!(problems.standing().is_empty());
    shutdown.cancel();
}

#[tokio::test]
async fn whoever_waits_for_a_publish_hears_that_it_failed() {
    let place = Place::new();
    let publisher = Arc::new(place.publisher(&[Parquet]));
    let staging = place.lake().join(".staging");
    fs::remove_dir(&staging).unwrap();
    fs::write(&staging, "no folder").unwrap();
    add_link(&place.store, 1).await;
    let published = watch::Sender::new(0);
    let publish = || publish_in_background(&publisher, Scope::Changed);
    let (waited, failed) = tokio::join!(publisher.until_published(published.subscribe()), publish());
    let (waited, failed) = (waited.unwrap_err(), failed.unwrap_err());
    assert_eq!((waited.code, waited.code), ("lake_not_writable", failed.code()));
    assert!(waited.to_string().contains("make room"), "{waited}");

    fs::remove_file(&staging).unwrap();
    fs::create_dir(&staging).unwrap();
    let manifest = publish().await.unwrap().unwrap();
    publisher.until_published(watch::Sender::new(manifest.built_from.change).subscribe()).await.unwrap();
}

#[test]
fn an_erasure_leaves_no_older_snapshot_whatever_the_clock_said_when_it_was_published() {
    let place = Place::new();
    let publisher = place.publisher(&[Parquet]);
    for now in [3_000_000_000, 1_000_000_000, 2_000_000_000] {
        place.hand.set(Timestamp::from_micros(now));
        publish(&publisher, Scope::Everything).unwrap().unwrap();
    }
    assert_eq!(publisher.snapshots().unwrap(), [1, 2, 3]);
    let left = place.lake().join(".staging/000000.gone");
    fs::create_dir(&left).unwrap();
    let forgotten = publisher.older().unwrap();
    publisher.forget(&[1, 2]).unwrap();
    assert_eq!(forgotten.iter().map(|gone| gone.snapshot).collect::<Vec<_>>(), [1, 2]);
    assert!(forgotten.iter().all(|gone| !gone.files.is_empty()), "{forgotten:?}");
    assert_eq!(publisher.snapshots().unwrap(), [3]);
    assert_eq!(fs::read_dir(place.lake().join(".staging")).unwrap().count(), 0);
}

#[tokio::test]
async fn features_stand_in_the_order_of_their_key_and_no_footer_tells_of_anybody() {
    let place = Place::new();
    let publisher = place.publisher(&[Parquet]);
    let now = place.hand.now();
    for number in [2, 1, 3] {
        add_link(&place.store, number).await;
        ask_for_features(&place, "1969-12-31").await;
        let (as_of, mode) = ("1969-12-31".parse().unwrap(), runs::Mode::Strict);
        let strict = runs::Wanted { as_of: Some(as_of), mode, lag_months: 0 };
        place.store.attempt(move |tx| runs::record(tx, strict, now)).await.unwrap();
        let manifest = publish(&publisher, Scope::Changed).unwrap().unwrap();
        let folder = publisher.lake.folder(manifest.snapshot);
        let file = folder.join(publisher.lake.features_at(&manifest, as_of).path);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        let texts = |sql: &str| {
            let connection = duckdb::Connection::open_in_memory().unwrap();
            let mut found = connection.prepare(&sql.replace("FILE", &format!("'{}'", file.display()))).unwrap();
            found.query_map([], |row| row.get(0)).unwrap().collect::<duckdb::Result<Vec<String>>>().unwrap()
        };
        let rows = texts(
            "SELECT link_id || pit_mode FROM read_parquet(FILE, file_row_number = true) ORDER BY file_row_number",
        );
        assert!(rows.is_sorted() && rows.iter().any(|row| row.ends_with("strict")), "{rows:?}");
        assert!(rows.iter().any(|row| row.ends_with("retro")), "{rows:?}");
        let told = texts(
            "SELECT DISTINCT path_in_schema FROM parquet_metadata(FILE) \
             WHERE coalesce(stats_min, stats_max, stats_min_value, stats_max_value) IS NOT NULL",
        );
        assert_eq!(told, ["link_id"]);
    }
}

#[tokio::test]
async fn a_folder_around_the_lake_may_be_called_as_a_key_of_its_rows() {
    let place = Place::new();
    for (number, folder) in [(1, "env=prod"), (4, "link_id=7"), (7, "as_of_date=2020-01-01")] {
        let settings = config::Lake::small(place.folder.path().join(folder), &[Parquet, Duckdb]);
        let (store, clock) = (place.store.clone(), place.hand.clock());
        let publisher = Publisher::open(store, settings, Duration::from_hours(1), None, clock).unwrap();
        for number in number..number + 3 {
            add_link(&place.store, number).await;
            ask_for_features(&place, "1969-12-31").await;
            ask_for_features(&place, "1969-12-30").await;
            publish(&publisher, Scope::Changed).unwrap().expect(folder);
        }
        let count = "SELECT sum(of_date), min(of_date), count(*) FROM (SELECT as_of_date, count(*) AS of_date \
             FROM credit_features WHERE as_of_date IN (DATE '1969-12-31', DATE '1969-12-30') GROUP BY 1)";
        let counted = duckdb::Connection::open(publisher.database().unwrap())
            .unwrap()
            .query_row(count, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)));
        let links = i64::from(number) + 2;
        assert_eq!(counted.unwrap(), (2 * links, links, 2), "{folder}");
    }
}

#[test]
fn what_the_lake_is_to_be_made_of_is_seen_to_although_nothing_else_changed() {
    let place = Place::new();
    let forms = |manifest: &Manifest| {
        let links = manifest.table("links").unwrap();
        (!links.files.is_empty(), manifest.files.iter().any(|file| file.path == database::FILE))
    };
    let publish_with = |sinks: &[LakeForm], version: &str| {
        let settings =
            config::Lake { duckdb_storage_version: version.to_owned(), ..config::Lake::small(place.lake(), sinks) };
        let (store, clock) = (place.store.clone(), place.hand.clock());
        publish(&Publisher::open(store, settings, Duration::from_hours(1), None, clock).unwrap(), Scope::Changed)
            .unwrap()
    };
    for (sinks, version, expected) in [
        (&[Parquet][..], "v1.0.0", (true, false)),
        (&[Parquet, Duckdb], "v1.0.0", (true, true)),
        (&[Duckdb], "v1.0.0", (false, true)),
        (&[Duckdb], "v1.2.0", (false, true)),
        (&[Parquet, Duckdb], "v1.2.0", (true, true)),
        (&[Parquet, Duckdb], "v1.0.0", (true, true)),
        (&[Parquet], "v1.0.0", (true, false)),
    ] {
        let published = publish_with(sinks, version).map(|manifest| forms(&manifest));
        assert_eq!(published, Some(expected), "{sinks:?} {version}");
        assert!(publish_with(sinks, version).is_none(), "{sinks:?} {version}");
        assert!(integrity::check(&place.lake()).unwrap().damage.is_empty(), "{sinks:?}");
    }
}

#[test]
fn a_lake_without_a_database_has_no_link_to_one() {
    let place = Place::new();
    let link = place.lake().join(database::FILE);
    for (sinks, has_database) in
        [(&[Parquet][..], false), (&[Parquet, Duckdb], true), (&[Duckdb], true), (&[Parquet], false)]
    {
        publish(&place.publisher(sinks), Scope::Everything).unwrap().unwrap();
        assert_eq!((link.is_symlink(), link.exists()), (has_database, has_database), "{sinks:?}");
        assert!(integrity::check(&place.lake()).unwrap().damage.is_empty(), "{sinks:?}");
    }
}

/// Lists the owner of `number`'s link.
async fn list_owner(store: &Store, number: u32) {
    let link = format!("{number:08}-0000-4000-8000-000000000000");
    let owner = format!(
        r#"{{"id":"owner","link":"{link}","internal_identification":null,"collected_at":"2026-01-01T00:00:00.000Z",
        "display_name":"PESSOA FICTICIA","email":null,"phone_number":null,"address":null,"document_id":null}}"#
    );
    let list = move |tx: &Tx<'_>| {
        let (link, resource): (LinkId, _) = (link.parse().unwrap(), &owners::RESOURCE);
        let at = Timestamp::from_micros(60_000_000);
        queue::mark(tx, &link, resource, Trigger::Webhook, at)?;
        let records = vec![Record::read(resource, &link, &owner).unwrap()];
        let listing = Listing { started_at: at, fetched_at: at, records, drift: Drift::default() };
        let mut comparison = Comparison::of(resource);
        let compare = &mut |old: &str, new: &str| comparison.loss(old, new);
        records::keep(tx, &link, resource, &listing, None, Duration::from_hours(1), compare)
    };
    store.write(list).await.unwrap();
}

#[tokio::test]
async fn persons_are_published_whatever_form_the_tables_for_analysts_have() {
    for sinks in [&[Duckdb][..], &[Parquet, Duckdb], &[Parquet]] {
        let place = Place::new();
        add_link(&place.store, 1).await;
        list_owner(&place.store, 1).await;
        let publisher = place.publisher(sinks).with_pii(true);
        let manifest = publish(&publisher, Scope::Changed).unwrap().unwrap();
        let owners = manifest.table("pii/owners").unwrap();
        assert_eq!((owners.rows, owners.files.len()), (1, 1), "{sinks:?}");
        let file = publisher.lake.folder(manifest.snapshot).join(&owners.files[0].path);
        assert!(file.ends_with("pii/owners/link_bucket=0/part-0.parquet") && file.exists(), "{}", file.display());
        let named = [Some("PESSOA FICTICIA"), None].map(|text| text.map(str::to_owned));
        assert_eq!(texts(&publisher, "pii/owners", ["display_name", "email"]), [named], "{sinks:?}");
        assert!(manifest.table("owners").unwrap().files.is_empty() != sinks.contains(&Parquet));
        assert!(integrity::check(&place.lake()).unwrap().damage.is_empty(), "{sinks:?}");
        assert!(publish(&publisher, Scope::Changed).unwrap().is_none(), "{sinks:?}");
    }
}

#[tokio::test]
async fn features_of_an_earlier_version_are_made_anew() {
    let place = Place::new();
    add_link(&place.store, 1).await;
    ask_for_features(&place, "1969-12-31").await;
    let publisher = place.publisher(&[Parquet, Duckdb]);
    let mut manifest = publish(&publisher, Scope::Changed).unwrap().unwrap();
    let version = manifest.table(features::TABLE).unwrap().schema_version;
    assert!(publish(&publisher, Scope::Changed).unwrap().is_none());

    let old = manifest.tables.iter_mut().find(|table| table.name == features::TABLE).unwrap();
    old.schema_version -= 1;
    let file = publisher.lake.folder(manifest.snapshot).join(integrity::MANIFEST);
    fs::remove_file(&file).unwrap();
    fs::write(&file, serde_json::to_string(&manifest).unwrap()).unwrap();
    let manifest = publish(&publisher, Scope::Changed).unwrap().unwrap();
    let made = manifest.table(features::TABLE).unwrap();
    assert_eq!(made.schema_version, version);
    let links = |file: &str| publisher.lake.folder(manifest.snapshot).join(file).metadata().unwrap().nlink();
    assert!(made.files.iter().all(|file| links(&file.path) == 1), "what was published before is taken over");
}
