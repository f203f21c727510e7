//! The driver's face: values in, rows out, and nothing that only one database has.

use std::cell::{Cell as StdCell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use aws_lc_rs::aead::RandomizedNonceKey;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Statement, ToSql};

use super::{Error, MasterKeys};
use crate::clock::Timestamp;
use crate::link_id::LinkId;

/// An open transaction.
pub struct Tx<'c> {
    connection: &'c Connection,
    keys: Option<&'c MasterKeys>,
    last_cipher: LastCipher,
    change: StdCell<Option<i64>>,
}

/// The data key that was used last, and whose it is.
type LastCipher = RefCell<Option<(String, RandomizedNonceKey)>>;

impl<'c> Tx<'c> {
    pub(super) fn new(connection: &'c Connection, keys: Option<&'c MasterKeys>) -> Self {
        Self { connection, keys, last_cipher: RefCell::default(), change: StdCell::default() }
    }

    pub(super) fn keys(&self) -> Option<&'c MasterKeys> {
        self.keys
    }

    pub(super) fn last_cipher(&self) -> &LastCipher {
        &self.last_cipher
    }

    /// Runs one of several pieces of work that share a transaction: one that says false, or panics, leaves nothing of
    /// what it wrote, and harms no other. Says whether its work is kept.
    ///
    /// # Errors
    /// [`Error::Database`]; the transaction is of no use then.
    pub fn attempt(&self, work: impl FnOnce() -> bool) -> Result<bool, Error> {
        // Kept statements: for a small write, parsing them anew costs as much as the write.
        let run = |sql: &str| self.connection.prepare_cached(sql)?.execute([]);
        run("SAVEPOINT one_write")?;
        let is_kept = catch_unwind(AssertUnwindSafe(work)).unwrap_or(false);
        self.last_cipher.take();
        if !is_kept {
            // Its number is taken back with it.
            self.change.take();
            run("ROLLBACK TO one_write")?;
        }
        run("RELEASE one_write")?;
        Ok(is_kept)
    }

    /// The number of this commit, greater than that of every commit before: whoever asks makes it one that the
    /// publisher has to look at.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn change(&self) -> Result<i64, Error> {
        if let Some(change) = self.change.get() {
            return Ok(change);
        }
        let change = self.next_number("changes")?;
        self.change.set(Some(change));
        Ok(change)
    }

    /// Counts the counter `name` on, and gives its new value.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn next_number(&self, name: &str) -> Result<i64, Error> {
        let next = self.one(
            "INSERT INTO meta (name, value) VALUES ($1, '1') ON CONFLICT (name) DO UPDATE \
             SET value = CAST(CAST(meta.value AS BIGINT) + 1 AS TEXT) RETURNING CAST(value AS BIGINT)",
            args![name],
            |row| row.int(0),
        )?;
        next.ok_or(Error::Unreadable("a counter"))
    }

    /// The number in the first column of the first row, as of `SELECT count(*)`; 0 when there is no row.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn count(&self, sql: &str, args: &[Value<'_>]) -> Result<u64, Error> {
        Ok(self.one(sql, args, |row| row.count(0))?.unwrap_or_default())
    }

    /// What `meta` says under `name`.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn meta(&self, name: &str) -> Result<Option<String>, Error> {
        self.one("SELECT value FROM meta WHERE name = $1", args![name], |row| row.text(0))
    }

    /// Lets `meta` say `value` under `name`.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn set_meta(&self, name: &str, value: &str) -> Result<(), Error> {
        let sql =
            "INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        self.execute(sql, args![name, value]).map(drop)
    }

    /// The tables that have a column called `column`, by name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn tables_with(&self, column: &str) -> Result<Vec<String>, Error> {
        self.all(
            "SELECT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) c \
             WHERE m.type = 'table' AND c.name = $1 ORDER BY m.name",
            args![column],
            |row| row.text(0),
        )
    }

    /// Runs a statement and gives the number of rows that it changed.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn execute(&self, sql: &str, args: &[Value<'_>]) -> Result<usize, Error> {
        let mut statement = self.connection.prepare_cached(sql)?;
        bind(&mut statement, args)?;
        Ok(statement.raw_execute()?)
    }

    /// Gives each row to `each`, in the query's order.
    ///
    /// # Errors
    /// [`Error::Database`], or what `each` gave; it ends the query.
    pub fn each<E: From<Error>>(
        &self,
        sql: &str,
        args: &[Value<'_>],
        mut each: impl FnMut(&Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut statement = self.connection.prepare_cached(sql).map_err(Error::from)?;
        bind(&mut statement, args).map_err(Error::from)?;
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().map_err(Error::from)? {
            each(&Row(row))?;
        }
        Ok(())
    }

    /// What `read` makes of each row.
    ///
    /// # Errors
    /// Those of [`Tx::each`].
    pub fn all<T>(
        &self,
        sql: &str,
        args: &[Value<'_>],
        read: impl Fn(&Row<'_>) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        self.each(sql, args, |row| {
            all.push(read(row)?);
            Ok::<_, Error>(())
        })?;
        Ok(all)
    }

    /// What `read` makes of the first row, if there is one.
    ///
    /// # Errors
    /// Those of [`Tx::each`].
    pub fn one<T>(
        &self,
        sql: &str,
        args: &[Value<'_>],
        read: impl FnOnce(&Row<'_>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let mut statement = self.connection.prepare_cached(sql)?;
        bind(&mut statement, args)?;
        let mut rows = statement.raw_query();
        rows.next()?.map(|row| read(&Row(row))).transpose()
    }
}

/// The first `limit` of what was `found`, and the `key` of the last of these when there are more: whoever asks for a
/// page asks for one more than it holds.
pub fn page<T, K>(mut found: Vec<T>, limit: usize, key: impl FnOnce(&T) -> K) -> (Vec<T>, Option<K>) {
    let has_more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| has_more).map(key);
    (found, next)
}

/// Gives `$n` the n-th value. To SQLite `$2` is a name and not a number: it numbers names as they first appear.
fn bind(statement: &mut Statement<'_>, args: &[Value<'_>]) -> rusqlite::Result<()> {
    for index in 1..=statement.parameter_count() {
        let number = statement.parameter_name(index).and_then(|name| name.strip_prefix('$')?.parse::<usize>().ok());
        let value = number.and_then(|number| args.get(number.checked_sub(1)?));
        let value = value.ok_or(rusqlite::Error::InvalidParameterCount(args.len(), statement.parameter_count()))?;
        statement.raw_bind_parameter(index, value)?;
    }
    Ok(())
}

/// One row of a result; columns are counted from 0.
pub struct Row<'r>(&'r rusqlite::Row<'r>);

impl Row<'_> {
    /// Every column with its name, for those who tell all that there is.
    ///
    /// # Errors
    /// As [`Row::int`].
    pub fn cells(&self) -> Result<Vec<(String, Cell)>, Error> {
        let names = self.0.as_ref().column_names();
        let cell = |column| {
            Ok::<_, Error>(match self.0.get_ref(column)? {
                ValueRef::Integer(value) => Cell::Int(value),
                ValueRef::Text(text) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
                ValueRef::Blob(bytes) => Cell::Bytes(bytes.to_vec()),
                // The state has no column of this type.
                ValueRef::Null | ValueRef::Real(_) => Cell::Null,
            })
        };
        names.into_iter().enumerate().map(|(column, name)| Ok((name.to_owned(), cell(column)?))).collect()
    }

    /// An integer column.
    ///
    /// # Errors
    /// [`Error::Database`] when the column is NULL or of another type; likewise below.
    pub fn int(&self, column: usize) -> Result<i64, Error> {
        Ok(self.0.get(column)?)
    }

    /// An integer column that may be NULL.
    ///
    /// # Errors
    /// As [`Row::int`].
    pub fn opt_int(&self, column: usize) -> Result<Option<i64>, Error> {
        Ok(self.0.get(column)?)
    }

    /// A number of things: nothing is less than none of them.
    ///
    /// # Errors
    /// As [`Row::int`].
    pub fn count(&self, column: usize) -> Result<u64, Error> {
        Ok(u64::try_from(self.int(column)?).unwrap_or_default())
    }

    /// A number of things that may be NULL.
    ///
    /// # Errors
    /// As [`Row::int`].
    pub fn opt_count(&self, column: usize) -> Result<Option<u64>, Error> {
        Ok(self.opt_int(column)?.map(|count| u64::try_from(count).unwrap_or_default()))
    }

    /// A text column.
    ///
    /// # Errors
    /// As [`Row::int`].
    pub fn text(&self, column: usize) -> Result<String, Error> {
        Ok(self.0.get(column)?)
    }

    /// A text column that may be NULL.
    ///
    /// # Errors
    /// As [`Row::int`].
    pub fn opt_text(&self, column: usize) -> Result<Option<String>, Error> {
        Ok(self.0.get(column)?)
    }

    /// A text column, without a copy.
    ///
    /// # Errors
    /// As [`Row::int`].
    pub fn str(&self, column: usize) -> Result<&str, Error> {
        self.0.get_ref(column)?.as_str().map_err(|_| Error::Unreadable("a text column"))
    }

    /// A column of bytes, without a copy.
    ///
    /// # Errors
    /// As [`Row::int`].
    pub fn bytes(&self, column: usize) -> Result<&[u8], Error> {
        self.0.get_ref(column)?.as_blob().map_err(|_| Error::Unreadable("a bytes column"))
    }

    /// An instant.
    ///
    /// # Errors
    /// As [`Row::int`].
    pub fn at(&self, column: usize) -> Result<Timestamp, Error> {
        self.int(column).map(Timestamp::from_micros)
    }

    /// An instant that may be NULL.
    ///
    /// # Errors
    /// As [`Row::int`].
    pub fn opt_at(&self, column: usize) -> Result<Option<Timestamp>, Error> {
        Ok(self.opt_int(column)?.map(Timestamp::from_micros))
    }

    /// A link's id.
    ///
    /// # Errors
    /// [`Error::Unreadable`] when the text is not one.
    pub fn link_id(&self, column: usize) -> Result<LinkId, Error> {
        self.str(column)?.parse().map_err(|_| Error::Unreadable("a link id"))
    }
}

/// What a column holds.
#[derive(Clone)]
pub enum Cell {
    /// SQL NULL.
    Null,
    /// A 64-bit integer.
    Int(i64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// A value for a `$n` of a statement. Instants are stored as microseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    /// SQL NULL.
    Null,
    /// A 64-bit integer.
    Int(i64),
    /// Text.
    Text(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Int(value) => ValueRef::Integer(*value),
            Self::Text(value) => ValueRef::Text(value.as_bytes()),
            Self::Bytes(value) => ValueRef::Blob(value),
        }))
    }
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

/// What a number in the source is when nothing else says its type.
impl From<i32> for Value<'_> {
    fn from(value: i32) -> Self {
        Self::Int(i64::from(value))
    }
}

impl From<u32> for Value<'_> {
    fn from(value: u32) -> Self {
        Self::Int(i64::from(value))
    }
}

/// What is beyond SQL's numbers is the largest of them; likewise below.
impl From<u64> for Value<'_> {
    fn from(value: u64) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Value<'_> {
    fn from(value: usize) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

/// In microseconds, so that it can be added to an instant.
impl From<Duration> for Value<'_> {
    fn from(value: Duration) -> Self {
        Self::Int(i64::try_from(value.as_micros()).unwrap_or(i64::MAX))
    }
}

impl From<Timestamp> for Value<'_> {
    fn from(value: Timestamp) -> Self {
        Self::Int(value.as_micros())
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Int(i64::from(value))
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(value)
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(value: &'a String) -> Self {
        Self::Text(value)
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(value: &'a [u8]) -> Self {
        Self::Bytes(value)
    }
}

impl<'a> From<&'a LinkId> for Value<'a> {
    fn from(value: &'a LinkId) -> Self {
        Self::Text(value.as_str())
    }
}

impl<'a, T: Into<Value<'a>>> From<Option<T>> for Value<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// The values of a statement, in the order of its `$1`, `$2`, …
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::store::Value::from($value)),*] };
}
pub(crate) use args;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_where_the_next_begins_only_when_there_is_one() {
        let page_of = |found: i64, limit| page((1..=found).collect(), limit, |number| *number);
        assert_eq!(page_of(3, 2), (vec![1, 2], Some(2)));
        assert_eq!(page_of(2, 2), (vec![1, 2], None));
        assert_eq!(page_of(0, 2), (vec![], None));
        assert_eq!(page_of(1, 0), (vec![], None));
    }

    #[test]
    fn what_is_beyond_a_number_of_sql_is_the_largest() {
        for value in [Value::from(u64::MAX), Value::from(usize::MAX), Value::from(Duration::MAX)] {
            assert!(matches!(value, Value::Int(i64::MAX)), "{value:?}");
        }
        assert!(matches!(Value::from(Duration::from_millis(3)), Value::Int(3_000)));
    }
}
