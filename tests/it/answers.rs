//! Every answer that Belvo documents: what becomes of the refresh and of the link, what the operator reads, and how
//! `vinculo refresh` ends.

use std::net::SocketAddr;

use serde_json::json;
use tokio::net::TcpListener;
use vinculo::simulate::{self, Fault, Simulation};
use vinculo::store::{Error, Readers};

use crate::binary::{Site, run};
use crate::harness::{ANY_PORT, Serving};

/// What becomes of a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It is tried again by itself.
    Again,
    /// Its operator is told by the link, and it is tried again, more and more seldom; the link's other resources go on.
    Operator,
    /// The link waits for its user, with this status.
    User(&'static str),
}

use Then::{Again, Operator, User};

/// Status, Belvo's code, its message when that matters, our code, what follows, and the exit code of `refresh`.
#[rustfmt::skip]
const ANSWERS: [(u16, &str, &str, &str, Then, i32); 47] = [
    (400, "activation_failed", "", "link_needs_user", User("invalid"), 1),
    (400, "blank", "", "bad_request", Operator, 1),
    (400, "does_not_exist", "", "bad_request", Operator, 1),
    (400, "duplicated", "", "bad_request", Operator, 1),
    (400, "null", "", "bad_request", Operator, 1),
    (400, "required", "", "bad_request", Operator, 1),
    (400, "invalid", "", "bad_request", Operator, 1),
    (400, "invalid_choice", "", "bad_request", Operator, 1),
    (400, "not_a_list", "", "bad_request", Operator, 1),
    (400, "parse_error", "", "bad_request", Operator, 1),
    (400, "validation_error", "", "bad_request", Operator, 1),
    (400, "invalid_credentials_storage", "", "bad_request", Operator, 1),
    (400, "invalid_fetch_resources", "", "bad_request", Operator, 1),
    (400, "invalid_period", "", "bad_request", Operator, 1),
    (400, "institution_down", "", "institution_down", Again, 6),
    (400, "institution_unavailable", "", "institution_down", Again, 6),
    (400, "institution_inactive", "", "institution_down", Again, 6),
    (400, "invalid_link", "", "link_needs_user", User("invalid"), 1),
    (400, "login_error", "Invalid credentials provided to login to the institution", "link_needs_user", User("invalid"), 1),
    (400, "login_error", "Login not attempted due to invalid credentials", "link_needs_user", User("invalid"), 1),
    (400, "login_error", "The account is locked", "link_needs_user", User("invalid"), 1),
    (400, "login_error", "Impossible to login, something unexpected happened. Try again later", "institution_refuses", Again, 6),
    (400, "session_expired", "", "link_needs_user", User("invalid"), 1),
    (400, "session_expired_ob", "", "link_needs_user", User("invalid"), 1),
    (400, "too_many_sessions", "", "institution_refuses", Again, 6),
    (400, "unavailable_data", "", "institution_down", Again, 6),
    (400, "unconfirmed_link", "", "link_needs_user", User("unconfirmed"), 1),
    (400, "unsupported_operation", "", "resource_refused", Operator, 1),
    (400, "operational_limits_reached", "", "resource_refused", Operator, 1),
    (401, "authentication_failed", "", "api_auth", Again, 5),
    (401, "consent_without_accounts", "", "resource_refused", Operator, 1),
    (403, "access_to_production_denied", "", "api_forbidden", Operator, 5),
    (403, "access_to_resource_denied", "", "api_forbidden", Operator, 5),
    (403, "permission_denied", "", "institution_refuses", Again, 6),
    (403, "quota_limit_reached", "", "api_forbidden", Operator, 5),
    (403, "forbidden_by_host", "", "institution_refuses", Again, 6),
    (403, "(html)", "", "api_blocked", Again, 7),
    (404, "not_found", "", "not_found", Again, 1),
    (404, "expired_credentials", "", "link_expired", User("invalid"), 1),
    (405, "method_not_allowed", "", "bad_request", Operator, 1),
    (408, "request_timeout", "", "api_timeout", Again, 6),
    (409, "link_refreshed", "Please wait 7 minutes before trying again.", "link_cooling", Again, 1),
    (428, "activation_required", "", "link_needs_user", User("invalid"), 1),
    (428, "token_required", "", "link_needs_user", User("token_required"), 1),
    (429, "(html)", "", "rate_limited", Again, 7),
    (500, "service_unavailable", "", "api_down", Again, 6),
    (500, "unexpected_error", "", "api_down", Again, 6),
];

/// Commands that run side by side.
const AT_ONCE: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_documented_answer_has_its_outcome_its_words_and_its_exit_code() {
    let people = u32::try_from(ANSWERS.len()).unwrap();
    let simulation = Simulation::new(simulate::Settings { people, limit: None, ..simulate::Settings::default() });
    let listener = TcpListener::bind(ANY_PORT).await.unwrap();
    let belvo = listener.local_addr().unwrap();
    let _serving = Serving::start(&simulation, listener);
    simulation.connect_all();
    let links = simulation.link_ids();
    for ((status, code, message, ..), link) in ANSWERS.into_iter().zip(&links) {
        let mut fault = json!({"fault": "status", "code": status, "link": link, "resource": "employments"});
        match code {
            "(html)" => fault["html"] = "true".into(),
            code => fault["error"] = code.into(),
        }
        if !message.is_empty() {
            fault["message"] = message.into();
        }
        simulation.arm(Fault::from_json(&fault).unwrap());
    }
    let cases: Vec<_> = ANSWERS.into_iter().zip(links).collect();
    let lines = tokio::task::spawn_blocking(move || {
        let mut lines = Vec::new();
        for some in cases.chunks(AT_ONCE) {
            std::thread::scope(|scope| {
                let running: Vec<_> = some.iter().map(|case| scope.spawn(move || play(belvo, case))).collect();
                lines.extend(running.into_iter().map(|case| case.join().unwrap()));
            });
        }
        lines
    });
    insta::assert_snapshot!(lines.await.unwrap().join("\n"));
}

type Case = ((u16, &'static str, &'static str, &'static str, Then, i32), String);

/// Refreshes the link of a case by command, and gives what the operator reads.
fn play(belvo: SocketAddr, ((status, code, _, ours, then, exit), link): &Case) -> String {
    let site = Site::new(belvo, &[]);
    let ended = run(&mut site.command(&["refresh", "--link", link, "--resource", "employments"]));
    let about = format!("{status} {code}: {ended:?}");
    assert_eq!(ended.code, Some(*exit), "{about}");

    let state = Readers::of(&site.folder.path().join("var/state.db"));
    let sql = format!(
        "SELECT f.last_error_code, f.blocked_reason, f.due_at IS NOT NULL, l.status, l.paused_reason, l.last_error_code \
         FROM refreshes f JOIN links l ON l.link_id = f.link_id WHERE f.link_id = '{link}' AND f.resource = 'employments'"
    );
    let row = state.read::<_, Error>(|tx| {
        tx.one(&sql, &[], |row| {
            let waits = row.int(2)? == 1;
            Ok((row.opt_text(0)?, row.opt_text(1)?, waits, row.opt_text(3)?, row.opt_text(4)?, row.opt_text(5)?))
        })
    });
    let (error, blocked, waits, link_status, paused, link_error) = row.unwrap().unwrap();
    assert_eq!(error.as_deref(), Some(*ours), "{about}");
    match then {
        Again => assert_eq!((blocked, waits, paused), (None, true, None), "{about}"),
        Operator => {
            assert_eq!((blocked, waits, paused), (None, true, None), "{about}");
            assert_eq!(link_error.as_deref(), Some(*ours), "{about}");
        }
        User(then) => {
            assert_eq!((blocked.as_deref(), waits, paused.as_deref()), (Some(*ours), false, Some(*ours)), "{about}");
            assert_eq!(link_status.as_deref(), Some(*then), "{about}");
            assert_eq!(link_error.as_deref(), Some(*ours), "{about}");
        }
    }
    // Belvo's support asks for the request id of each failure.
    if *code != "(html)" {
        assert!(ended.err.contains("request id"), "{about}");
    }
    let told = ended.out.lines().find(|line| line.starts_with("failed")).unwrap_or_else(|| panic!("{about}"));
    format!("{status} {code} · {then:?} · exit {exit} · {told}")
}
