//! What a derived column made of short fields lately: months and types come again and again, and the same each time.

use super::parse::Slot;
use super::plan::MOST_INPUTS;
use crate::short::Recent;

/// Results of one function, by the fields of its row that it was given.
pub(super) struct Memo<R>(Recent<MOST_INPUTS, R>);

impl<R> Default for Memo<R> {
    fn default() -> Self {
        Self(Recent::default())
    }
}

impl<R: Copy + Default> Memo<R> {
    /// What came of these fields, if that is known.
    #[inline]
    pub(super) fn result(&self, fields: [Slot; MOST_INPUTS]) -> Option<&R> {
        self.0.find(numbers(fields))
    }

    /// Remembers what came of fields, unless they only point into a record, which will be another one.
    pub(super) fn keep(&mut self, fields: [Slot; MOST_INPUTS], result: R) {
        if fields.iter().all(|field| field.is_whole()) {
            self.0.keep(numbers(fields), result);
        }
    }
}

#[inline]
fn numbers([first, second]: [Slot; MOST_INPUTS]) -> [u64; MOST_INPUTS] {
    [first.number(), second.number()]
}
