//! What becomes of a refresh that failed.
//!
//! *Takes* the failure. *Gives* how the refresh goes back into the queue, or what is logged of it. *Promises* that the
//! failure's own word decides. *Not here*: how long those wait that are refused, or fail for long, which depends on
//! others: `refusals.rs`.

use std::time::Duration;

use crate::backoff::doubled;
use crate::belvo::{Decision, Failure, patience};
use crate::clock::Timestamp;
use crate::queue::{Outcome, Refresh};
use crate::refresh::Error;
use crate::store;

/// How long a refresh waits of which the answer lacked something or could not be kept; doubled with each failure in a
/// row.
const FIRST_WAIT: Duration = Duration::from_secs(3);
/// How long that wait is at most.
const LONGEST_WAIT: Duration = Duration::from_secs(48);

/// Failed tries, some ten minutes of them, after which what fails takes no more of the budget than what Belvo refuses.
const LASTS_AFTER: u32 = 15;

/// How a refresh that failed at `at`, after so many failed `attempts` before, goes back. `refusal_wait` says how long
/// it waits when Belvo refuses it, or does not know it, or has failed at it for long.
pub(super) fn of_failure(
    error: &Error,
    attempts: u32,
    at: Timestamp,
    refusal_wait: impl FnOnce(&Failure) -> Duration,
) -> Outcome {
    let wait = match error {
        Error::Belvo(failure) => match failure.kind {
            Decision::AskUser => return Outcome::Blocked { code: failure.code.name(), at },
            // Whoever mends it tells nobody here, and the webhook that asked for it does not come again.
            Decision::Refused | Decision::Gone => refusal_wait(failure),
            // A few are asked for within the minute for ever, but many would leave others little of the budget.
            Decision::Retry if attempts >= LASTS_AFTER => refusal_wait(failure),
            Decision::Retry | Decision::RetryAfter(_) | Decision::Stop => failure.delay(attempts, &mut rand::rng()),
        },
        Error::Alone => return Outcome::Released,
        Error::Foreign(_) => patience(attempts, &mut rand::rng()),
        Error::Store(store::Error::Overtaken(_)) => Duration::ZERO,
        // The end of this failure cannot be predicted, and retrying early is useless.
        Error::Store(cause) if cause.is_about_one_write() => patience(attempts, &mut rand::rng()),
        Error::Incomplete | Error::Store(_) => doubled(FIRST_WAIT, attempts, LONGEST_WAIT),
    };
    Outcome::Postponed { code: error.code(), at, until: at + wait }
}

/// Logs why a refresh failed.
pub(super) fn log(refresh: &Refresh, error: &Error) {
    let link = refresh.link_id.log_tag();
    let resource = refresh.resource.name;
    let attempt = refresh.attempts + 1;
    match error {
        Error::Belvo(failure) => {
            let request_id = failure.request_id.as_deref();
            match failure.kind {
                Decision::AskUser => {
                    tracing::warn!(code = failure.code.name(), link, resource, request_id, "{failure}");
                }
                Decision::Retry | Decision::RetryAfter(_) | Decision::Stop if failure.is_worth_a_report(attempt) => {
                    tracing::error!(
                        code = failure.code.name(),
                        link,
                        resource,
                        request_id,
                        attempt,
                        "{failure}; it goes on for long: report Belvo's request id to Belvo"
                    );
                }
                _ => tracing::warn!(code = failure.code.name(), link, resource, request_id, attempt, "{failure}"),
            }
        }
        // It is asked for at once.
        Error::Alone => {}
        Error::Incomplete => {
            tracing::info!(code = error.code(), link, resource, attempt, "{error}; it is asked for again");
        }
        Error::Foreign(_) => {
            tracing::error!(
                code = error.code(),
                link,
                resource,
                attempt,
                "{error}; nothing of the list was kept, report it to Belvo"
            );
        }
        Error::Store(store::Error::Overtaken(_)) => {
            tracing::warn!(code = error.code(), link, resource, "{error}");
        }
        Error::Store(_) => tracing::error!(code = error.code(), link, resource, attempt, "{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::belvo::Code;

    #[test]
    fn a_failure_decides_what_becomes_of_its_refresh() {
        let at = Timestamp::from_micros(1_000_000);
        let refused = Duration::from_secs(77);
        let belvo = |code| Error::Belvo(Failure::own(code, "/api/owners/"));
        let overtaken = || Error::Store(store::Error::Overtaken("a refresh"));
        for (error, attempts, least, most) in [
            (belvo(Code::TooLarge), 0, 77, 77),
            (belvo(Code::NotFound), 9, 77, 77),
            // With its jitter.
            (belvo(Code::Timeout), 0, 3, 4),
            (belvo(Code::Timeout), LASTS_AFTER - 1, 48, 60),
            (belvo(Code::Timeout), LASTS_AFTER, 77, 77),
            (belvo(Code::ApiAuth), 2, 12, 15),
            (belvo(Code::ApiAuth), LASTS_AFTER, 48, 60),
            (Error::Incomplete, 0, 3, 3),
            (Error::Incomplete, 40, 48, 48),
            (overtaken(), 3, 0, 0),
            (Error::Store(store::Error::Closed), 1, 6, 6),
        ] {
            let Outcome::Postponed { code, at: failed_at, until } = of_failure(&error, attempts, at, |_| refused)
            else {
                panic!("{error} is not postponed");
            };
            assert_eq!((code, failed_at), (error.code(), at));
            let wait = until.since(at);
            assert!((Duration::from_secs(least)..=Duration::from_secs(most)).contains(&wait), "{error}: {wait:?}");
        }
        let blocked = of_failure(&belvo(Code::LinkNeedsUser), 0, at, |_| refused);
        assert_eq!(blocked, Outcome::Blocked { code: "link_needs_user", at });
        assert_eq!(of_failure(&Error::Alone, 0, at, |_| refused), Outcome::Released);
    }
}
