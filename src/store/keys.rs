//! Bodies under lock: one data key for each link, wrapped by the master key.
//!
//! *Takes* the master key of the configuration. *Gives* [`Tx::seal`] and [`Tx::open`]. *Promises* that a sealed body
//! opens only in its own place (link, record, version), that a flipped bit is noticed, and that the bodies of a link
//! are noise once the row of its key is gone. Without a master key bodies are kept as they come.
//!
//! Data keys are kept in memory no longer than a transaction: reading one anew costs a point query and 32 bytes of AES,
//! less than keeping a cache right while writes are rolled back and links are erased.

use std::borrow::Cow;
use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::{Error, Tx, args};
use crate::config;

/// First byte of a sealed body. Neither JSON nor zstd begins with it, so that bodies from before there was a key are
/// known.
const SEALED: u8 = 1;

/// Length of every key, in bytes.
const KEY_LEN: usize = 32;

/// Owner of the key of webhooks that name no link. Its row also tells whether the master key is the right one.
const NOBODY: &str = "";

/// Bodies that are sealed in one transaction when a state gets its first key.
const SEALED_AT_ONCE: i64 = 2_000;

/// Value of `bodies_sealed` in `meta` once frozen features are sealed too, which earlier versions left open.
const SEALED_TABLES: &str = "2";

/// The master key, and the one before it while it is being replaced.
#[derive(Clone)]
pub struct MasterKeys {
    current: Key,
    previous: Option<Key>,
}

impl MasterKeys {
    /// The keys of the configuration; `None` when bodies are not to be encrypted.
    pub fn of(settings: &config::State) -> Option<Self> {
        // The configuration was checked: a key that is there is one.
        let current = Key::read(settings.encryption_key.as_ref()?)?;
        Some(Self { current, previous: settings.encryption_key_previous.as_ref().and_then(Key::read) })
    }
}

impl fmt::Debug for MasterKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKeys(…)")
    }
}

/// Whose key a body is sealed with.
#[derive(Debug, Clone, Copy)]
pub enum KeyOf<'a> {
    /// A link's own.
    Link(&'a str),
    /// That of webhooks that name no link.
    Nobody,
}

impl<'a> KeyOf<'a> {
    fn owner(self) -> &'a str {
        match self {
            Self::Link(link_id) => link_id,
            Self::Nobody => NOBODY,
        }
    }
}

/// 32 secret bytes, wiped when they go.
#[derive(Clone)]
struct Key(Zeroizing<[u8; KEY_LEN]>);

impl Key {
    fn read(base64: &SecretString) -> Option<Self> {
        let bytes = Zeroizing::new(BASE64_STANDARD.decode(base64.expose_secret()).ok()?);
        Some(Self(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
    }

    fn new() -> Self {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        // Without randomness there is no secret; the system has none to give only when it is broken.
        aws_lc_rs::rand::fill(bytes.as_mut_slice()).expect("the system gives random bytes");
        Self(bytes)
    }

    fn cipher(&self) -> RandomizedNonceKey {
        RandomizedNonceKey::new(&AES_256_GCM, self.0.as_slice()).expect("the key is as long as AES-256 wants it")
    }
}

/// Nonce, ciphertext and tag of `plain`, bound to `place`.
fn encrypt(key: &RandomizedNonceKey, place: &[u8], plain: &[u8], prefix: &[u8]) -> Result<Vec<u8>, Error> {
    let start = prefix.len() + NONCE_LEN;
    let mut sealed = Vec::with_capacity(start + plain.len() + AES_256_GCM.tag_len());
    sealed.extend_from_slice(prefix);
    sealed.resize(start, 0);
    sealed.extend_from_slice(plain);
    let (head, body) = sealed.split_at_mut(start);
    let (nonce, tag) = key.seal_in_place_separate_tag(Aad::from(place), body).map_err(|_| Error::NotEncrypted)?;
    head[prefix.len()..].copy_from_slice(nonce.as_ref());
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

/// What [`encrypt`] was given; `None` under another key, at another place, or after a change.
fn decrypt(key: &RandomizedNonceKey, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, body) = sealed.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut body = body.to_vec();
    let length = key.open_in_place(nonce, Aad::from(place), &mut body).ok()?.len();
    body.truncate(length);
    Some(body)
}

/// The parts, each with its length, so that no two places are written alike.
fn place_of(owner: &str, parts: &[&str]) -> Vec<u8> {
    let mut place = Vec::with_capacity(64);
    for part in std::iter::once(&owner).chain(parts) {
        place.extend_from_slice(&(part.len() as u64).to_le_bytes());
        place.extend_from_slice(part.as_bytes());
    }
    place
}

const WRAPPED: &[&str] = &["data key"];

fn wrap(master: &Key, owner: &str, key: &Key) -> Result<Vec<u8>, Error> {
    encrypt(&master.cipher(), &place_of(owner, WRAPPED), key.0.as_slice(), &[])
}

fn unwrap(master: &Key, owner: &str, wrapped: &[u8]) -> Option<Key> {
    let bytes = Zeroizing::new(decrypt(&master.cipher(), &place_of(owner, WRAPPED), wrapped)?);
    Some(Key(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
}

impl Tx<'_> {
    /// `plain` as it is to be stored at `place` within what belongs to `of`; as it is when there is no master key. The
    /// first body of a link makes the link's key.
    ///
    /// # Errors
    /// [`Error::Database`]; [`Error::Unreadable`] when the link's key is damaged.
    pub fn seal<'b>(&self, of: KeyOf<'_>, place: &[&str], plain: &'b [u8]) -> Result<Cow<'b, [u8]>, Error> {
        let Some(master) = self.keys() else { return Ok(Cow::Borrowed(plain)) };
        let owner = of.owner();
        let key = if let Some(key) = self.data_key(owner)? {
            key
        } else {
            let key = Key::new();
            let wrapped = wrap(&master.current, owner, &key)?;
            self.execute("INSERT INTO link_keys (link_id, wrapped) VALUES ($1, $2)", args![owner, wrapped.as_slice()])?;
            key
        };
        encrypt(&key.cipher(), &place_of(owner, place), plain, &[SEALED]).map(Cow::Owned)
    }

    /// The body that [`Tx::seal`] was given; one from before there was a key as it is.
    ///
    /// # Errors
    /// [`Error::KeyMissing`] without a master key; [`Error::Unreadable`] when body or key are damaged or gone.
    pub fn open<'b>(&self, of: KeyOf<'_>, place: &[&str], stored: &'b [u8]) -> Result<Cow<'b, [u8]>, Error> {
        let Some((&SEALED, sealed)) = stored.split_first() else { return Ok(Cow::Borrowed(stored)) };
        let owner = of.owner();
        self.with_last_cipher(owner, |cipher| {
            let plain = decrypt(cipher, &place_of(owner, place), sealed);
            plain.map(Cow::Owned).ok_or(Error::Unreadable("an encrypted body"))
        })
    }

    /// Gives `work` the key of `owner`, which is kept until another's is wanted: bodies are read link by link.
    fn with_last_cipher<T>(
        &self,
        owner: &str,
        work: impl FnOnce(&RandomizedNonceKey) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut last = self.last_cipher().borrow_mut();
        let cipher = match &mut *last {
            Some((held, cipher)) if held == owner => &*cipher,
            slot => {
                let key = self.data_key(owner)?.ok_or(Error::Unreadable("the key of an encrypted body"))?;
                &slot.insert((owner.to_owned(), key.cipher())).1
            }
        };
        work(cipher)
    }

    fn data_key(&self, owner: &str) -> Result<Option<Key>, Error> {
        let master = self.keys().ok_or(Error::KeyMissing)?;
        let key = self.one("SELECT wrapped FROM link_keys WHERE link_id = $1", args![owner], |row| {
            unwrap(&master.current, owner, row.bytes(0)?).ok_or(Error::Unreadable("the key of an encrypted body"))
        })?;
        Ok(key)
    }
}

/// Refuses `keys` that are not those of the state, before anything is written.
///
/// # Errors
/// [`Error::KeyMissing`], [`Error::KeyWrong`].
pub(super) fn check(connection: &Connection, keys: Option<&MasterKeys>) -> Result<(), Error> {
    let made = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'link_keys'";
    if connection.query_row(made, [], |row| row.get::<_, i64>(0))? == 0 {
        return Ok(());
    }
    match (probe(connection)?, keys) {
        (None, _) => Ok(()),
        (Some(_), None) => Err(Error::KeyMissing),
        (Some(wrapped), Some(keys)) => {
            let opens = |key: &Key| unwrap(key, NOBODY, &wrapped).is_some();
            if opens(&keys.current) || keys.previous.as_ref().is_some_and(opens) {
                Ok(())
            } else {
                Err(Error::KeyWrong)
            }
        }
    }
}

fn probe(connection: &Connection) -> Result<Option<Vec<u8>>, Error> {
    Ok(connection.query_row("SELECT wrapped FROM link_keys WHERE link_id = ''", [], |row| row.get(0)).optional()?)
}

/// Brings the state under the current key: makes the first data key, wraps all anew that the key before had wrapped,
/// and seals what was kept before there was a key. A crash in between is made up for at the next start.
///
/// # Errors
/// [`Error::Database`], [`Error::KeyWrong`].
pub(super) fn bring_under(connection: &mut Connection, keys: &MasterKeys) -> Result<(), Error> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    match probe(&transaction)? {
        None => {
            check_others(&transaction, keys)?;
            let wrapped = wrap(&keys.current, NOBODY, &Key::new())?;
            transaction.execute("INSERT INTO link_keys (link_id, wrapped) VALUES ('', $1)", [wrapped])?;
        }
        Some(wrapped) if unwrap(&keys.current, NOBODY, &wrapped).is_none() => wrap_anew(&transaction, keys)?,
        Some(_) => {}
    }
    transaction.commit()?;
    let is_sealed = "SELECT count(*) FROM meta WHERE name = 'bodies_sealed' AND value = $1";
    if connection.query_row(is_sealed, [SEALED_TABLES], |row| row.get::<_, i64>(0))? == 0 {
        seal_the_open(connection, keys)?;
        connection.execute(
            "INSERT INTO meta (name, value) VALUES ('bodies_sealed', $1) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            [SEALED_TABLES],
        )?;
    }
    Ok(())
}

/// Refuses a master key that does not open the links' keys. Where the probe is lost, a wrong master key would otherwise
/// be taken for the right one, and every body would count as damaged.
fn check_others(connection: &Connection, keys: &MasterKeys) -> Result<(), Error> {
    let other = connection
        .query_row("SELECT link_id, wrapped FROM link_keys LIMIT 1", [], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?))
        })
        .optional()?;
    let opens = |(owner, wrapped): (String, Vec<u8>)| unwrap(&keys.current, &owner, &wrapped).is_some();
    if other.is_none_or(opens) { Ok(()) } else { Err(Error::KeyWrong) }
}

fn wrap_anew(connection: &Connection, keys: &MasterKeys) -> Result<(), Error> {
    let previous = keys.previous.as_ref().ok_or(Error::KeyWrong)?;
    let mut held = connection.prepare("SELECT link_id, wrapped FROM link_keys")?;
    let held: Vec<(String, Vec<u8>)> =
        held.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let mut update = connection.prepare("UPDATE link_keys SET wrapped = ?2 WHERE link_id = ?1")?;
    tracing::info!(keys = held.len(), "the keys of all links are wrapped with the new state.encryption_key");
    for (owner, wrapped) in held {
        let key = unwrap(previous, &owner, &wrapped).ok_or(Error::KeyWrong)?;
        update.execute((&owner, wrap(&keys.current, &owner, &key)?))?;
    }
    Ok(())
}

/// Seals the bodies that were kept while there was no key.
fn seal_the_open(connection: &mut Connection, keys: &MasterKeys) -> Result<(), Error> {
    loop {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let tx = Tx::new(&transaction, Some(keys));
        let versions = tx.all(
            "SELECT link_id, resource, record_key, version, body FROM record_versions WHERE substr(body, 1, 1) <> $1 LIMIT $2",
            args![[SEALED].as_slice(), SEALED_AT_ONCE],
            |row| Ok((row.text(0)?, row.text(1)?, row.text(2)?, row.int(3)?, row.bytes(4)?.to_vec())),
        )?;
        let webhooks = tx.all(
            "SELECT seq, link_id, received_at, body FROM webhooks WHERE substr(body, 1, 1) <> $1 AND length(body) > 0 LIMIT $2",
            args![[SEALED].as_slice(), SEALED_AT_ONCE],
            |row| Ok((row.int(0)?, row.opt_text(1)?, row.int(2)?, row.bytes(3)?.to_vec())),
        )?;
        let frozen = tx.all(
            "SELECT decision_id, link_id, body FROM frozen_features WHERE substr(body, 1, 1) <> $1 LIMIT $2",
            args![[SEALED].as_slice(), SEALED_AT_ONCE],
            |row| Ok((row.text(0)?, row.text(1)?, row.bytes(2)?.to_vec())),
        )?;
        if versions.is_empty() && webhooks.is_empty() && frozen.is_empty() {
            return Ok(());
        }
        for (link_id, resource, record_key, version, body) in versions {
            let place = VersionPlace { link_id: &link_id, resource: &resource, record_key: &record_key, version };
            let sealed = place.seal(&tx, &body)?;
            tx.execute(
                "UPDATE record_versions SET body = $5 WHERE link_id = $1 AND resource = $2 AND record_key = $3 AND version = $4",
                args![&link_id, &resource, &record_key, version, &*sealed],
            )?;
        }
        for (seq, link_id, received_at, body) in webhooks {
            let sealed = WebhookPlace { link_id: link_id.as_deref(), received_at }.seal(&tx, &body)?;
            tx.execute("UPDATE webhooks SET body = $2 WHERE seq = $1", args![seq, &*sealed])?;
        }
        for (decision_id, link_id, body) in frozen {
            let sealed = FrozenPlace { link_id: &link_id, decision_id: &decision_id }.seal(&tx, &body)?;
            let update = "UPDATE frozen_features SET body = $2 WHERE decision_id = $1";
            tx.execute(update, args![&decision_id, &*sealed])?;
        }
        drop(tx);
        transaction.commit()?;
    }
}

/// Where a record's body is kept.
#[derive(Debug, Clone, Copy)]
pub struct VersionPlace<'a> {
    /// Its link.
    pub link_id: &'a str,
    /// Name of its resource.
    pub resource: &'a str,
    /// Its record.
    pub record_key: &'a str,
    /// Its version.
    pub version: i64,
}

impl VersionPlace<'_> {
    /// The body as it is stored here.
    ///
    /// # Errors
    /// Those of [`Tx::seal`].
    pub fn seal<'b>(&self, tx: &Tx<'_>, packed: &'b [u8]) -> Result<Cow<'b, [u8]>, Error> {
        tx.seal(KeyOf::Link(self.link_id), &[self.resource, self.record_key, &self.version.to_string()], packed)
    }

    /// The body that is stored here.
    ///
    /// # Errors
    /// Those of [`Tx::open`].
    pub fn open<'b>(&self, tx: &Tx<'_>, stored: &'b [u8]) -> Result<Cow<'b, [u8]>, Error> {
        tx.open(KeyOf::Link(self.link_id), &[self.resource, self.record_key, &self.version.to_string()], stored)
    }
}

/// Where a webhook's body is kept.
#[derive(Debug, Clone, Copy)]
pub struct WebhookPlace<'a> {
    /// The link that it names.
    pub link_id: Option<&'a str>,
    /// When it came, in microseconds since 1970.
    pub received_at: i64,
}

impl WebhookPlace<'_> {
    /// The body as it is stored here.
    ///
    /// # Errors
    /// Those of [`Tx::seal`].
    pub fn seal<'b>(&self, tx: &Tx<'_>, body: &'b [u8]) -> Result<Cow<'b, [u8]>, Error> {
        tx.seal(self.key(), &["webhook", &self.received_at.to_string()], body)
    }

    /// The body that is stored here.
    ///
    /// # Errors
    /// Those of [`Tx::open`].
    pub fn open<'b>(&self, tx: &Tx<'_>, stored: &'b [u8]) -> Result<Cow<'b, [u8]>, Error> {
        tx.open(self.key(), &["webhook", &self.received_at.to_string()], stored)
    }

    fn key(&self) -> KeyOf<'_> {
        self.link_id.map_or(KeyOf::Nobody, KeyOf::Link)
    }
}

/// Where a row of features is kept that a decision used.
#[derive(Debug, Clone, Copy)]
pub struct FrozenPlace<'a> {
    /// Its link.
    pub link_id: &'a str,
    /// The decision.
    pub decision_id: &'a str,
}

impl FrozenPlace<'_> {
    /// The row as it is stored here.
    ///
    /// # Errors
    /// Those of [`Tx::seal`].
    pub fn seal<'b>(&self, tx: &Tx<'_>, row: &'b [u8]) -> Result<Cow<'b, [u8]>, Error> {
        tx.seal(KeyOf::Link(self.link_id), &["frozen features", self.decision_id], row)
    }

    /// The row that is stored here.
    ///
    /// # Errors
    /// Those of [`Tx::open`].
    pub fn open<'b>(&self, tx: &Tx<'_>, stored: &'b [u8]) -> Result<Cow<'b, [u8]>, Error> {
        tx.open(KeyOf::Link(self.link_id), &["frozen features", self.decision_id], stored)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::store::Store;

    const BODY: &[u8] = br#"{"name":"PESSOA FICTICIA"}"#;
    const PLACE: VersionPlace<'_> = VersionPlace { link_id: "a", resource: "owners", record_key: "k", version: 1 };
    const FROZEN: FrozenPlace<'_> = FrozenPlace { link_id: "a", decision_id: "d" };

    fn settings(path: &Path, current: Option<u8>, previous: Option<u8>) -> config::State {
        let key = |byte: Option<u8>| byte.map(|byte| SecretString::from(BASE64_STANDARD.encode([byte; KEY_LEN])));
        config::State { path: path.to_owned(), encryption_key: key(current), encryption_key_previous: key(previous) }
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        (folder, path)
    }

    /// Keeps the body of the link `a`, as the store does.
    async fn keep(store: &Store) {
        store
            .write(|tx| {
                let body = PLACE.seal(tx, BODY)?;
                tx.execute(
                    "INSERT INTO record_versions (link_id, resource, record_key, version, is_late, record_id, known_from, \
                     started_at, fetched_at, body) VALUES ('a', 'owners', 'k', 1, 0, 'r', 0, 0, 0, $1)",
                    args![&*body],
                )?;
                let body = WebhookPlace { link_id: None, received_at: 7 }.seal(tx, BODY)?;
                tx.execute(
                    "INSERT INTO webhooks (received_at, outcome, body) VALUES (7, 'quarantined', $1)",
                    args![&*body],
                )?;
                let row = FROZEN.seal(tx, BODY)?;
                tx.execute(
                    "INSERT INTO frozen_features VALUES ('d', 'a', '2026-01-01', 'strict', 0, $1)",
                    args![&*row],
                )
            })
            .await
            .unwrap();
    }

    async fn stored(store: &Store) -> [Vec<u8>; 3] {
        store
            .read(|tx| {
                let one = |sql: &str| Ok::<_, Error>(tx.one(sql, args![], |row| Ok(row.bytes(0)?.to_vec()))?.unwrap());
                let tables = ["record_versions", "webhooks", "frozen_features"];
                let [record, webhook, frozen] = tables.map(|table| one(&format!("SELECT body FROM {table}")));
                Ok([record?, webhook?, frozen?])
            })
            .await
            .unwrap()
    }

    async fn opened(store: &Store) -> Result<Vec<u8>, Error> {
        let [record, webhook, frozen] = stored(store).await;
        let opened = store
            .read(move |tx| {
                assert_eq!(*WebhookPlace { link_id: None, received_at: 7 }.open(tx, &webhook)?, *BODY);
                assert_eq!(*FROZEN.open(tx, &frozen)?, *BODY);
                PLACE.open(tx, &record).map(Cow::into_owned)
            })
            .await?;
        Ok(opened)
    }

    #[tokio::test]
    async fn a_body_opens_in_its_own_place_and_nowhere_else_and_not_after_a_change() {
        let (_folder, path) = place();
        let store = Store::configured(&settings(&path, Some(1), None)).unwrap();
        keep(&store).await;
        assert_eq!(opened(&store).await.unwrap(), BODY);
        let [record, ..] = stored(&store).await;
        assert!(!record.windows(6).any(|bytes| bytes == b"PESSOA"));
        store
            .read(move |tx| {
                for other in [
                    VersionPlace { version: 2, ..PLACE },
                    VersionPlace { record_key: "l", ..PLACE },
                    VersionPlace { resource: "employments", ..PLACE },
                ] {
                    assert!(matches!(other.open(tx, &record), Err(Error::Unreadable(_))));
                }
                for bit in 8..record.len() * 8 {
                    let mut flipped = record.clone();
                    flipped[bit / 8] ^= 1 << (bit % 8);
                    assert!(PLACE.open(tx, &flipped).is_err(), "bit {bit}");
                }
                Ok(())
            })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn without_the_row_of_its_key_a_body_is_noise_and_others_are_not() {
        let (_folder, path) = place();
        let store = Store::configured(&settings(&path, Some(1), None)).unwrap();
        keep(&store).await;
        store.write(|tx| tx.execute("DELETE FROM link_keys WHERE link_id = 'a'", args![])).await.unwrap();
        assert!(matches!(opened(&store).await, Err(Error::Unreadable("the key of an encrypted body"))));
    }

    #[tokio::test]
    async fn a_wrong_key_is_refused_also_when_the_row_that_tells_so_is_lost() {
        let (_folder, path) = place();
        let store = Store::configured(&settings(&path, Some(1), None)).unwrap();
        keep(&store).await;
        store.write(|tx| tx.execute("DELETE FROM link_keys WHERE link_id = ''", args![])).await.unwrap();
        drop(store);
        assert!(matches!(opened_once_free(&path, Some(2), None), Err(Error::KeyWrong)));
        drop(until_free(&path, Some(1), None));
    }

    #[tokio::test]
    async fn another_key_and_none_are_refused_and_nothing_is_written() {
        let (_folder, path) = place();
        let store = Store::configured(&settings(&path, Some(1), None)).unwrap();
        keep(&store).await;
        drop(store);
        let reopened = until_free(&path, Some(1), None);
        drop(reopened);
        while crate::store::holder(&path).is_some() {
            std::thread::yield_now();
        }
        let before = std::fs::read(&path).unwrap();
        let refused = Store::configured(&settings(&path, Some(2), Some(3))).err().unwrap();
        assert_eq!(refused.code(), "state_key_wrong");
        let refused = Store::configured(&settings(&path, None, None)).err().unwrap();
        assert_eq!(refused.code(), "state_key_missing");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    /// The threads of a store that was dropped end in their own time.
    fn until_free(path: &Path, current: Option<u8>, previous: Option<u8>) -> Store {
        opened_once_free(path, current, previous).unwrap()
    }

    fn opened_once_free(path: &Path, current: Option<u8>, previous: Option<u8>) -> Result<Store, Error> {
        loop {
            match Store::configured(&settings(path, current, previous)) {
                Err(Error::Held { .. }) => std::thread::yield_now(),
                store => return store,
            }
        }
    }

    #[tokio::test]
    async fn a_new_master_key_takes_over_from_the_one_before() {
        let (_folder, path) = place();
        let store = Store::configured(&settings(&path, Some(1), None)).unwrap();
        keep(&store).await;
        let before = stored(&store).await;
        drop(store);
        let store = until_free(&path, Some(2), Some(1));
        assert_eq!((opened(&store).await.unwrap(), stored(&store).await), (BODY.to_vec(), before));
        drop(store);
        assert_eq!(opened(&until_free(&path, Some(2), None)).await.unwrap(), BODY);
    }

    #[tokio::test]
    async fn what_was_kept_before_there_was_a_key_is_encrypted_at_the_first_start_with_one() {
        let (_folder, path) = place();
        let store = Store::open(&path).unwrap();
        keep(&store).await;
        assert_eq!(stored(&store).await, [BODY, BODY, BODY]);
        drop(store);
        let store = until_free(&path, Some(1), None);
        assert_eq!(opened(&store).await.unwrap(), BODY);
        assert!(stored(&store).await.iter().all(|body| body[0] == SEALED));
    }

    #[test]
    fn keys_have_no_printed_form() {
        let keys = MasterKeys::of(&settings(Path::new("x"), Some(1), None)).unwrap();
        assert_eq!(format!("{keys:?}"), "MasterKeys(…)");
    }
}
