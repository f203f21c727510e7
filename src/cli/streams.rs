//! Standard output and error, whose reader may leave.
//!
//! What a command came to does not hang on who reads along: once the reader has gone, what is written goes nowhere, and the
//! command ends as it would have. Whoever writes for as long as it is read, such as `vinculo sql`, uses the plain ones.

use std::io::{self, ErrorKind, StderrLock, StdoutLock, Write};

use serde_json::json;

use super::Global;

/// A stream that takes what nobody reads any more.
pub(super) struct Patient<W>(W);

/// Standard output.
pub(super) fn out() -> Patient<StdoutLock<'static>> {
    Patient(io::stdout().lock())
}

/// Standard error.
pub(super) fn err() -> Patient<StderrLock<'static>> {
    Patient(io::stderr().lock())
}

/// Says something beside the result, on standard error.
///
/// # Errors
/// Those of standard error.
pub(super) fn note(text: &str, global: &Global) -> io::Result<()> {
    if global.json { writeln!(err(), "{}", json!({ "note": text })) } else { writeln!(err(), "{text}") }
}

impl<W: Write> Write for Patient<W> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        match self.0.write(text) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(text.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            flushed => flushed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_gone_is_no_failure() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut stream = Patient(io::LineWriter::new(writer));
        for number in 0..3 {
            writeln!(stream, "{number}").unwrap();
        }
        stream.flush().unwrap();
    }
}
