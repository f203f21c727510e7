//! Deadlines: what was asked of Belvo and is looked after when no webhook tells what came of it.
//!
//! *Takes* whoever keeps deadlines, and how often to look at them. *Promises* that a look which failed is logged and
//! followed by the next, and that looking ends with the program. *Not here*: what is due, and what is then done.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store;

/// Whoever keeps deadlines.
pub trait Deadlines {
    /// Does what is due, and gives how much that was.
    ///
    /// # Errors
    /// [`store::Error`]; what is still due is done at the next look.
    fn follow_up(&self) -> impl Future<Output = Result<usize, store::Error>> + Send;
}

/// Looks after the deadlines of `who` at once, and then as often as `every` says, until `shutdown`. `what` names them
/// in the log.
pub async fn run(who: &impl Deadlines, every: Duration, what: &str, shutdown: CancellationToken) {
    let looking = async {
        loop {
            if let Err(error) = who.follow_up().await {
                tracing::error!(code = error.code(), "{what} could not be followed up: {error}");
            }
            tokio::time::sleep(every).await;
        }
    };
    shutdown.run_until_cancelled(looking).await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Somebody whose looks all fail, and whose third ends the program.
    struct Unlucky {
        looks: AtomicUsize,
        shutdown: CancellationToken,
    }

    impl Deadlines for Unlucky {
        async fn follow_up(&self) -> Result<usize, store::Error> {
            if self.looks.fetch_add(1, Ordering::SeqCst) == 2 {
                self.shutdown.cancel();
            }
            Err(store::Error::Unreadable("a deadline"))
        }
    }

    #[tokio::test]
    async fn a_look_that_failed_is_followed_by_the_next_until_the_program_ends() {
        let shutdown = CancellationToken::new();
        let unlucky = Unlucky { looks: AtomicUsize::new(0), shutdown: shutdown.clone() };
        let looking = run(&unlucky, Duration::from_millis(1), "deadlines of a test", shutdown);
        tokio::time::timeout(Duration::from_secs(10), looking).await.expect("the end is heard of");
        assert_eq!(unlucky.looks.load(Ordering::SeqCst), 3);
    }
}
