//! Which file of a table holds a link's rows.
//!
//! *Takes* a link. *Gives* its cell: a bucket, as `lake.link_buckets` says, and a part of it. *Promises* that parts
//! follow each other as links do when they are sorted, so that one is done before the next begins. *Not here*: the
//! files.

use std::ops::Range;

use crate::schema::Table;

/// Below this many links, splitting buckets into parts gains nothing: all of it is written in no time.
const WORTH_PARTS: u64 = 1_000;
/// Links of a part: of a lake in which one link in a hundred changed, most parts did not.
const LINKS_IN_A_PART: u64 = 8;
const MOST_PARTS: u64 = 128;
/// Files that a table has at most.
const MOST_FILES: u64 = 1_024;

/// A file of a table: the place of its bucket, after those of all buckets in the parts before.
pub(super) type Cell = u32;

/// How tables are split into files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    /// Partitions of each table.
    pub buckets: u32,
    /// Files of each bucket, each for a range of links; a power of two.
    pub parts: u32,
}

impl Split {
    /// The split for so many links, so that a link's news are no reason to write all others of its bucket again.
    pub(super) fn of(links: u64, buckets: u32) -> Self {
        let most = u64::from(buckets.max(1));
        let wanted = if links < WORTH_PARTS { 1 } else { links / (LINKS_IN_A_PART * most) };
        let most = wanted.min(MOST_PARTS).min(MOST_FILES / most).max(1);
        Self { buckets, parts: u32::try_from(1 << most.ilog2()).unwrap_or(1) }
    }

    /// The same buckets, a file each.
    pub(super) fn whole(self) -> Self {
        Self { parts: 1, ..self }
    }

    /// The bucket of a link: the last eight digits of its id, which are random in every kind of UUID, modulo the number
    /// of buckets.
    pub(super) fn bucket(self, link_id: &str) -> u32 {
        let tail = link_id.get(link_id.len().saturating_sub(8)..).unwrap_or_default();
        u32::from_str_radix(tail, 16).unwrap_or_default() % self.buckets
    }

    /// The part of a link's bucket: a range of its id's first eight digits.
    pub(super) fn part(self, link_id: &str) -> u32 {
        let head = u32::from_str_radix(link_id.get(..8).unwrap_or_default(), 16).unwrap_or_default();
        u32::try_from((u64::from(head) * u64::from(self.parts)) >> 32).unwrap_or_default()
    }

    /// What stands before every link of the part, and after those of the part before.
    pub(super) fn start_of(self, part: u32) -> String {
        match (u64::from(part) << 32) / u64::from(self.parts) {
            start if start > u64::from(u32::MAX) => "g".to_owned(),
            start => format!("{start:08x}"),
        }
    }

    /// The cell of a link.
    pub(super) fn cell(self, link_id: &str) -> Cell {
        self.cell_of(self.part(link_id), self.bucket(link_id))
    }

    /// The cell of a part of a bucket.
    pub(super) fn cell_of(self, part: u32, bucket: u32) -> Cell {
        part * self.buckets + bucket
    }

    /// All cells.
    pub(super) fn cells(self) -> Range<Cell> {
        0..self.parts * self.buckets
    }

    /// Where the cell's file of `table` is, relative to the snapshot.
    pub(super) fn path(self, table: &Table, cell: Cell) -> String {
        format!("{}/link_bucket={}/part-{}.parquet", table.name, cell % self.buckets, cell / self.buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_lakes_are_one_file_and_no_lake_has_more_files_than_a_table_should() {
        assert_eq!(Split::of(0, 1).parts, 1);
        assert_eq!(Split::of(999, 1).parts, 1);
        assert_eq!(Split::of(1_000, 1).parts, 64);
        assert_eq!(Split::of(2_000, 1).parts, 128);
        assert_eq!(Split::of(2_000, 16).parts, 8);
        assert_eq!(Split::of(1_000_000, 1).parts, 128);
        assert_eq!(Split::of(1_000_000, 16).parts, 64);
        assert_eq!(Split::of(1_000_000, 64).parts, 16);
        assert_eq!(Split::of(1_000_000, 4_096).parts, 1);
    }

    #[test]
    fn parts_follow_each_other_as_links_do() {
        for parts in [1, 2, 8, 128] {
            let split = Split { buckets: 1, parts };
            let mut before = 0;
            for head in (0..=u32::MAX).step_by(1 << 23).chain([u32::MAX]) {
                let link_id = format!("{head:08x}-0000-4000-8000-000000000000");
                let part = split.part(&link_id);
                assert!((before..parts).contains(&part));
                assert!(split.start_of(part) <= link_id && link_id < split.start_of(part + 1), "{link_id} of {parts}");
                before = part;
            }
            assert_eq!(before, parts - 1);
        }
    }
}
