//! What a derived column made of short fields lately: months and types come again and again, and the same each time.

use super::parse::Slot;
use crate::short::{PLACES, place_of};

/// Results of one function, by the fields of its row that it was given.
pub(super) struct Memo<R>(Vec<([Slot; 2], R)>);

impl<R> Default for Memo<R> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<R: Copy + Default> Memo<R> {
    /// What came of these fields, if that is known.
    #[inline]
    pub(super) fn result(&self, fields: [Slot; 2]) -> Option<&R> {
        self.0.get(place(fields)).filter(|(known, _)| *known == fields).map(|(_, result)| result)
    }

    /// Remembers what came of fields, unless they only point into a record, which will be another one.
    pub(super) fn keep(&mut self, fields: [Slot; 2], result: R) {
        if fields.iter().all(|field| field.is_whole()) {
            // No field is one of these: it would begin where it ends.
            self.0.resize(PLACES, ([Slot::default(); 2], R::default()));
            self.0[place(fields)] = (fields, result);
        }
    }
}

#[inline]
fn place(fields: [Slot; 2]) -> usize {
    place_of(fields[0].number().wrapping_add(fields[1].number()))
}
