//! Whether a state holds answers of a simulated Belvo or of a real one: it never holds both.
//!
//! *Takes* whether an answer says that it is simulated, in the header `X-Vinculo-Simulated`. *Gives* whether it may be
//! kept. The first answer that is kept decides, for as long as the state lives.

use crate::belvo::Client;
use crate::store::{Error, Store, Tx};

/// The row of `meta` that says whether the answers are simulated.
const IS_SIMULATED: &str = "is_simulated";

/// Whether an answer that is simulated, or is not, may be kept, inside the transaction that keeps it.
///
/// # Errors
/// [`Error::Database`].
pub fn agrees(tx: &Tx<'_>, is_simulated: bool) -> Result<bool, Error> {
    if let Some(found) = found(tx)? {
        return Ok(found == is_simulated);
    }
    tx.set_meta(IS_SIMULATED, if is_simulated { "true" } else { "false" })?;
    Ok(true)
}

/// Tells `client` what the state holds, so that it refuses other answers as they come.
///
/// # Errors
/// [`Error::Database`].
pub async fn recall(store: &Store, client: &Client) -> Result<(), Error> {
    if let Some(is_simulated) = store.read(found).await? {
        client.expect_simulated(is_simulated);
    }
    Ok(())
}

fn found(tx: &Tx<'_>) -> Result<Option<bool>, Error> {
    Ok(tx.meta(IS_SIMULATED)?.map(|value| value == "true"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::belvo::scripted;

    #[tokio::test]
    async fn the_first_answer_decides_for_ever() {
        for first in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("state.db")).unwrap();
            let client = scripted::client("127.0.0.1:9".parse().unwrap());
            recall(&store, &client).await.unwrap();
            assert_eq!(client.is_simulated(), None, "nothing is held yet");
            for (is_simulated, may_be_kept) in [(first, true), (!first, false), (first, true)] {
                assert_eq!(store.write(move |tx| agrees(tx, is_simulated)).await.unwrap(), may_be_kept);
            }
            recall(&store, &client).await.unwrap();
            assert_eq!(client.is_simulated(), Some(first));
        }
    }
}
