//! Names as hashes that say nothing to whoever has not this state's salt.
//!
//! *Takes* the name under which `meta` keeps a salt: what is hashed for one purpose is not found again for another.
//! *Gives* HMAC-SHA-256 under it, in hex.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::sensitive::hex;
use crate::store::{Error, Tx};

/// The salt called `name`; `None` when nothing was ever hashed under it.
///
/// # Errors
/// [`Error::Database`].
pub fn held(tx: &Tx<'_>, name: &str) -> Result<Option<String>, Error> {
    tx.meta(name)
}

/// The same, made when there is none.
///
/// # Errors
/// [`Error::Database`].
pub fn made(tx: &Tx<'_>, name: &str) -> Result<String, Error> {
    if let Some(salt) = held(tx, name)? {
        return Ok(salt);
    }
    let salt = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
    keep(tx, name, &salt)?;
    Ok(salt)
}

/// Keeps `salt` as the one called `name`, of which there is none yet.
///
/// # Errors
/// [`Error::Database`].
pub fn keep(tx: &Tx<'_>, name: &str, salt: &str) -> Result<(), Error> {
    tx.set_meta(name, salt)
}

/// The hash of `text` under `salt`.
pub fn hash(salt: &str, text: &str) -> String {
    // HMAC takes keys of any length, so that this cannot fail.
    let mut mac = Hmac::<Sha256>::new_from_slice(salt.as_bytes()).unwrap_or_else(|_| unreachable!());
    mac.update(text.as_bytes());
    hex(&mac.finalize().into_bytes())
}
