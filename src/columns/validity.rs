//! Which cells of a column are not NULL.

use std::ops::Range;

use arrow::array::NullBufferBuilder;
use arrow::buffer::NullBuffer;

/// Which cells are not NULL. Most columns have the one or the other for long: a run of either is only counted.
pub(super) struct Validity {
    noted: NullBufferBuilder,
    noted_len: usize,
    run: usize,
    /// What the cells of the run are.
    is_run_valid: bool,
}

impl Validity {
    pub(super) fn new() -> Self {
        Self { noted: NullBufferBuilder::new(1024), noted_len: 0, run: 0, is_run_valid: true }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.noted_len + self.run
    }

    #[inline]
    pub(super) fn append(&mut self, is_valid: bool) {
        self.append_times(is_valid, 1);
    }

    #[inline]
    pub(super) fn append_times(&mut self, is_valid: bool, count: usize) {
        if is_valid != self.is_run_valid {
            self.begin_run(is_valid);
        }
        self.run += count;
    }

    /// Appends what `other` says of `rows`, run by run.
    pub(super) fn append_like(&mut self, other: &Self, mut rows: Range<usize>) {
        while !rows.is_empty() {
            let is_valid = other.is_valid(rows.start);
            let ends = if rows.start >= other.noted_len {
                None
            } else {
                rows.clone().find(|&row| other.is_valid(row) != is_valid)
            };
            let run = rows.start..ends.unwrap_or(rows.end);
            self.append_times(is_valid, run.len());
            rows.start = run.end;
        }
    }

    #[inline]
    pub(super) fn is_valid(&self, row: usize) -> bool {
        if row >= self.noted_len { self.is_run_valid } else { self.noted.is_valid(row) }
    }

    /// Whether the last `count` cells are not NULL, all of which were appended since [`Validity::truncate`].
    #[inline]
    pub(super) fn ends_valid(&self, count: usize) -> bool {
        count == 0 || self.is_run_valid && self.run >= count
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.note_run();
        self.noted.truncate(len);
        self.noted_len = self.noted.len();
    }

    pub(super) fn take(&mut self) -> Option<NullBuffer> {
        self.note_run();
        self.noted_len = 0;
        self.noted.finish()
    }

    #[cold]
    fn begin_run(&mut self, is_valid: bool) {
        self.note_run();
        self.is_run_valid = is_valid;
    }

    fn note_run(&mut self) {
        if self.is_run_valid {
            self.noted.append_n_non_nulls(self.run);
        } else {
            self.noted.append_n_nulls(self.run);
        }
        self.noted_len += self.run;
        self.run = 0;
    }
}
