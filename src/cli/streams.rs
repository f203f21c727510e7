//! Standard output and error, whose reader may leave.
//!
//! What a command came to does not hang on who reads along: once the reader has gone, what is written goes nowhere, and the
//! command ends as it would have. Whoever writes for as long as it is read, such as `vinculo sql`, uses the plain ones.

use std::io::{self, ErrorKind, StderrLock, StdoutLock, Write};

use serde_json::json;

use super::Global;

/// A stream that takes what nobody reads any more.
pub(super) struct Patient<W> {
    stream: W,
    /// Whether what a command came to goes there. Then any other failure is one of the command.
    is_result: bool,
}

/// Standard output.
pub(super) fn out() -> Patient<StdoutLock<'static>> {
    Patient { stream: io::stdout().lock(), is_result: true }
}

/// Standard error. What is said beside a result, and cannot be said, takes nothing from the result.
pub(super) fn err() -> Patient<StderrLock<'static>> {
    Patient { stream: io::stderr().lock(), is_result: false }
}

/// Says something beside the result, on standard error.
///
/// # Errors
/// None.
pub(super) fn note(text: &str, global: &Global) -> io::Result<()> {
    if global.json { writeln!(err(), "{}", json!({ "note": text })) } else { writeln!(err(), "{text}") }
}

impl<W> Patient<W> {
    /// What `written` came to; `otherwise` where its failure is forgiven.
    fn judge<T>(&self, written: io::Result<T>, otherwise: T) -> io::Result<T> {
        match written {
            // To be tried again by whoever writes.
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            Err(error) if error.kind() == ErrorKind::BrokenPipe || !self.is_result => Ok(otherwise),
            Err(error) => {
                let what = format!("the result cannot be written to standard output: {error}");
                Err(io::Error::new(error.kind(), what))
            }
            written => written,
        }
    }
}

impl<W: Write> Write for Patient<W> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(text);
        self.judge(written, text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.stream.flush();
        self.judge(flushed, ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_gone_is_no_failure() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut stream = Patient { stream: io::LineWriter::new(writer), is_result: true };
        for number in 0..3 {
            writeln!(stream, "{number}").unwrap();
        }
        stream.flush().unwrap();
    }

    #[test]
    fn a_result_that_cannot_be_written_is_a_failure_and_a_note_is_none() {
        struct Full;

        impl Write for Full {
            fn write(&mut self, _text: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::StorageFull.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let error = writeln!(Patient { stream: Full, is_result: true }, "result").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert!(error.to_string().starts_with("the result cannot be written to standard output: "), "{error}");
        writeln!(Patient { stream: Full, is_result: false }, "note").unwrap();
    }
}
