//! A file of employments for benchmarks: one record a line, as the API sends it.

use std::io::{self, Write};

use super::Settings;
use super::links::{Link, Resource, Wish};
use super::people::Person;
use super::records;

/// Writes the employments of one person after the other, from person 0 on, one record a line, until at least
/// `min_bytes` are written; a person is never cut. Only `seed` and `start` of the settings matter. Gives the number of
/// bytes.
///
/// # Errors
/// When `out` fails.
pub fn write_ndjson(settings: &Settings, mut out: impl Write, min_bytes: u64) -> io::Result<u64> {
    let mut written = 0;
    let mut buffer = Vec::new();
    for number in 0.. {
        if written >= min_bytes {
            break;
        }
        let link = Link::new(settings.seed, number, 0, settings.start, Wish::default());
        let person = Person::of(settings.seed, number);
        let at = link.collections.latest(settings.start);
        buffer.clear();
        for record in records::list(settings.seed, &link, &person, Resource::Employments, at) {
            record.write(&mut buffer);
            buffer.push(b'\n');
        }
        out.write_all(&buffer)?;
        written += buffer.len() as u64;
    }
    out.flush()?;
    Ok(written)
}
