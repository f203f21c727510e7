//! Payloads, byte for byte, from any server that speaks Belvo's contract through webhooks to tables.

use std::time::Duration;

use crate::harness::Running;
use crate::scripted::{Belvo, EMPLOYMENTS, OWNERS, page};
use crate::tables::{self, Row, Tables};

const LINK: &str = "99000000-0000-4000-8000-000000000001";

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../fixtures/", $name, ".json"))
    };
}

/// A Belvo with one link, and the program.
pub(crate) struct Told {
    belvo: Belvo,
    pub(crate) running: Running,
}

impl Told {
    pub(crate) async fn start(overrides: &[(&str, &str)]) -> Self {
        let belvo = Belvo::start().await;
        belvo.has_link(LINK, fixture!("links/guide"));
        let running = Running::start(belvo.address, overrides).await;
        Self { belvo, running }
    }

    /// Belvo has `list` of employments, and says that they are `count`.
    async fn employments(&self, list: &str, count: usize) {
        self.belvo.lists(EMPLOYMENTS, LINK, list);
        let webhook = fixture!("webhooks/employments_historical_update");
        let webhook = webhook.replace("\"total_employments\": 1", &format!("\"total_employments\": {count}"));
        assert_eq!(self.running.webhook(&webhook).await, 200);
    }

    /// The same, and analysts see it.
    pub(crate) async fn employments_arrive(&self, list: &str, count: usize) -> Tables {
        self.employments(list, count).await;
        self.running.until_idle().await;
        self.running.tables()
    }

    /// Belvo has `list` of employments from now on, and analysts see what came of it; what is due later is left.
    pub(crate) async fn employments_change(&self, list: &str, count: usize) -> Tables {
        // A webhook right after a fetch waits for more of them.
        self.running.clock.advance(Duration::from_secs(6));
        let before = self.belvo.calls(EMPLOYMENTS).len();
        self.employments(list, count).await;
        self.until_listed(before + 1).await
    }

    /// Waits for the `lists`-th list of employments, and for its publishing.
    async fn until_listed(&self, lists: usize) -> Tables {
        let mut settled = self.running.daemon.settled();
        let arrived = async {
            loop {
                settled.mark_unchanged();
                let sql = "SELECT count(*) FROM link_snapshots WHERE resource = 'employments'";
                let args: &[vinculo::store::Value<'_>] = &[];
                let counted =
                    self.running.daemon.store.read(move |tx| tx.one(sql, args, |row| row.int(0))).await.unwrap();
                if counted.unwrap() >= i64::try_from(lists).unwrap() {
                    return;
                }
                settled.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), arrived).await.expect("the list comes");
        self.running.until_published().await;
        self.running.tables()
    }
}

/// The values of `column` where `by` is `value`.
fn values<'t>(rows: &'t [Row], by: &str, value: &str, column: &str) -> Vec<&'t str> {
    let wanted = rows.iter().filter(|row| row[by].as_deref() == Some(value));
    wanted.map(|row| row[column].as_deref().unwrap_or("NULL")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_payloads_of_belvos_guide_become_tables() {
    let told = Told::start(&[]).await;
    told.belvo.lists(OWNERS, LINK, fixture!("owners/guide"));
    told.employments(fixture!("employments/guide"), 1).await;
    assert_eq!(told.running.webhook(fixture!("webhooks/owners_historical_update")).await, 200);
    told.running.until_idle().await;
    let names = ["links", "employments", "occupations", "salaries", "owners", "link_snapshots", "rejected_records"];
    insta::assert_snapshot!(tables::shown(&told.running.tables(), &names));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amounts_come_out_of_both_sinks_to_the_last_digit() {
    let told = Told::start(&[]).await;
    // `employments_arrive` also compares DuckDB with Parquet, cell by cell.
    let found = told.employments_arrive(fixture!("employments/exact_amounts"), 1).await;
    let row = |month: &str| {
        let of = |column| values(&found["salaries"], "month_text", month, column)[0].to_owned();
        [of("base_amount"), of("retained_amount")]
    };
    assert_eq!(row("2024-01"), ["999999999999999.9900", "0.0100"]);
    assert_eq!(row("2024-02"), ["0.0100", "999999999999999.9999"]);
    assert_eq!(row("2024-03"), ["1033.0900", "0.0000"]);
    assert_eq!(row("2024-04"), ["1000.0000", "-12.5000"]);
    assert_eq!(row("2024-05"), ["NULL", "0.0000"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_records_are_kept_or_listed_and_the_rest_of_the_link_is_published() {
    let told = Told::start(&[]).await;
    let found = told.employments_arrive(fixture!("employments/oddities"), 5).await;
    let shown = tables::shown(&found, &["employments", "occupations", "salaries", "rejected_records"]);
    assert!(!shown.contains("PESSOA FICT") && !shown.contains("99000000726"), "an employer who is a person is shown");
    insta::assert_snapshot!(shown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_turns_unreadable_keeps_its_last_good_version() {
    let told = Told::start(&[]).await;
    let good = fixture!("employments/first_version");
    let before = told.employments_arrive(good, 2).await;
    let found = told.employments_change(&good.replace("\"2025-02-01\"", "\"2025-02-31\""), 2).await;
    for table in ["employments", "salaries", "occupations"] {
        let only = |tables: &Tables| std::collections::BTreeMap::from([(table.to_owned(), tables[table].clone())]);
        tables::assert_same(&only(&found), &only(&before), &[]);
    }
    let rejected = &found["rejected_records"];
    assert_eq!(rejected.len(), 1, "{rejected:#?}");
    assert_eq!(rejected[0]["path"].as_deref(), Some("start_date"));
    assert_eq!(rejected[0]["record_id"].as_deref(), Some("99000000-0000-4000-8001-000000000031"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_version_changes_what_changed_and_ends_nothing_before_a_second_list_agrees() {
    let told = Told::start(&[]).await;
    let first = told.employments_arrive(fixture!("employments/first_version"), 2).await;
    let job = values(&first["employments"], "employer_code", "99000006", "employment_key")[0].to_owned();
    let pay = |found: &Tables| {
        let mut months: Vec<[String; 3]> = found["salaries"]
            .iter()
            .filter(|row| row["employment_key"].as_deref() == Some(&job))
            .map(|row| ["month_text", "base_amount", "known_from"].map(|column| row[column].clone().unwrap()))
            .collect();
        months.sort();
        months
    };
    let row = |month: &str, amount: &str, known: &str| [month, amount, known].map(str::to_owned);
    let october = "2026-10-01T12:00:00.123456Z";
    assert_eq!(
        pay(&first),
        [
            row("2025-01", "3000.0000", october),
            row("2025-02", "3000.0000", october),
            row("2025-03", "3000.0000", october)
        ]
    );

    // February is corrected; March and the other job are missing.
    let second = told.employments_change(fixture!("employments/second_version"), 1).await;
    let seen = pay(&second);
    assert_eq!(seen.len(), 3, "a row ended because one list lacked it: {seen:?}");
    assert_eq!(seen[0], row("2025-01", "3000.0000", october), "nothing changed, so it is known since October");
    assert_eq!(seen[1][1], "3100.0000");
    // Collected in November, but what it replaces was still seen by a fetch after that.
    let fetched = first["link_snapshots"][0]["fetched_at"].clone().unwrap();
    assert!(seen[1][2].as_str() > october && seen[1][2] <= fetched, "{} {fetched}", seen[1][2]);
    assert_eq!(seen[2], row("2025-03", "3000.0000", october));
    assert_eq!(second["employments"].len(), 2);

    // An hour later the program asks by itself, and the second list agrees.
    told.running.clock.advance(Duration::from_hours(1) + Duration::from_secs(1));
    let lists = told.belvo.calls(EMPLOYMENTS).len();
    let stay = told.employments_change(fixture!("employments/second_version"), 1).await;
    assert!(told.belvo.calls(EMPLOYMENTS).len() > lists);
    assert_eq!(pay(&stay).len(), 2, "{:?}", pay(&stay));
    assert_eq!(values(&stay["employments"], "link_id", LINK, "employer_code"), ["99000006"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_row_is_asked_for_again_without_anybody_telling() {
    let told = Told::start(&[("belvo.confirm_after", "300ms")]).await;
    told.employments_arrive(fixture!("employments/first_version"), 2).await;
    told.running.clock.advance(Duration::from_secs(6));
    // `until_idle` waits for the second list too, because it is due.
    let found = told.employments_arrive(fixture!("employments/second_version"), 1).await;
    assert_eq!(told.belvo.calls(EMPLOYMENTS).len(), 3, "{:?}", told.belvo.calls(EMPLOYMENTS));
    assert_eq!(found["employments"].len(), 1);
    assert_eq!(found["salaries"].len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_keeps_its_key_under_a_new_id_and_with_a_corrected_employer() {
    let told = Told::start(&[]).await;
    let list = fixture!("employments/first_version");
    let first = told.employments_arrive(list, 2).await;
    let key =
        |found: &Tables, code: &str| values(&found["employments"], "employer_code", code, "employment_key").join(" ");
    let (six, seven) = (key(&first, "99000006"), key(&first, "99000007"));
    assert!(six.len() == 32 && seven.len() == 32 && six != seven);

    let reissued = list.replace("8001-000000000030", "8001-000000000130");
    let second = told.employments_change(&reissued, 2).await;
    assert_eq!((key(&second, "99000006"), second["employments"].len()), (six.clone(), 2));
    let ids = values(&second["salaries"], "employment_key", &six, "employment_id");
    assert!(ids.iter().all(|id| id.ends_with("000000000130")), "{ids:?}");
    assert_eq!(
        values(&second["salaries"], "employment_key", &six, "known_from"),
        values(&first["salaries"], "employment_key", &six, "known_from"),
        "an id is not content"
    );

    let corrected = reissued.replace("99000007", "99000008").replace("2025-02-01", "2025-02-03");
    let third = told.employments_change(&corrected, 2).await;
    assert_eq!((key(&third, "99000008"), third["employments"].len()), (seven, 2));
    assert_eq!(values(&third["employments"], "employer_code", "99000008", "start_date"), ["2025-02-03"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_list_against_the_webhooks_count_is_asked_for_again_until_it_is_right() {
    let told = Told::start(&[]).await;
    told.employments(&page(&[]), 1).await;
    // The answer is not believed: nothing is kept, and the next try is due in three seconds.
    let mut settled = told.running.daemon.settled();
    tokio::time::timeout(Duration::from_secs(10), async {
        while told.belvo.calls(EMPLOYMENTS).is_empty() {
            settled.changed().await.unwrap();
        }
    })
    .await
    .unwrap();
    told.belvo.lists(EMPLOYMENTS, LINK, fixture!("employments/guide"));
    told.running.until_idle().await;

    let found = told.running.tables();
    assert_eq!(told.belvo.calls(EMPLOYMENTS).len(), 2);
    assert_eq!(found["employments"].len(), 1);
    assert_eq!(found["link_snapshots"].len(), 1, "the empty answer was no complete list");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_list_that_nobody_announced_ends_nothing() {
    let told = Told::start(&[("belvo.confirm_after", "100ms")]).await;
    let before = told.employments_arrive(fixture!("employments/first_version"), 2).await;
    told.running.clock.advance(Duration::from_secs(6));
    // Belvo purges silently; the webhook is about something new and counts nothing.
    told.belvo.lists(EMPLOYMENTS, LINK, page(&[]));
    let webhook = fixture!("webhooks/employments_historical_update")
        .replace("\"historical_update\"", "\"new_employments_available\"")
        .replace("total_employments", "new_employments");
    assert_eq!(told.running.webhook(&webhook).await, 200);
    told.running.until_idle().await;
    let found = told.running.tables();
    assert_eq!(told.belvo.calls(EMPLOYMENTS).len(), 2, "there is nothing that a second list could settle");
    assert_eq!(
        (found["employments"].len(), found["salaries"].len()),
        (before["employments"].len(), before["salaries"].len())
    );

    // When Belvo says that there is none, and says so twice, there is none.
    told.running.clock.advance(Duration::from_secs(6));
    let gone = told.employments_arrive(&page(&[]), 0).await;
    assert_eq!((gone["employments"].len(), gone["salaries"].len()), (0, 0));
}
