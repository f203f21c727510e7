//! The head of each request as it came over the wire, before the HTTP parser has made its sense of it.
//!
//! The parser forgives a bare line feed, and of two framings it takes one; a proxy in front may take the other, and
//! then a request can be hidden in another's body. *Gives* a verdict on the head. *Not here*: what the headers mean.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Largest head; the parser refuses a larger one itself.
pub const LARGEST_HEAD: usize = 16 << 10;

/// The bytes of a connection that the next heads are in. Cheap to clone.
#[derive(Clone, Default)]
pub struct Heads(Arc<Mutex<Bytes>>);

#[derive(Default)]
struct Bytes {
    unread: Vec<u8>,
    /// Bytes of the current body that are still to come.
    skip: u64,
    /// Nothing that comes is a head any more.
    is_over: bool,
}

impl Heads {
    /// Takes the next head and says whether both sides of a proxy would read it alike. After a head that is not plain,
    /// or one without a length, the connection must end with its answer.
    pub fn next(&self) -> Framing {
        let mut bytes = self.lock();
        // The parser overlooks empty lines before a head, and does not tell of them.
        let blank = bytes.unread.chunks(2).take_while(|line| *line == b"\r\n").count() * 2;
        bytes.unread.drain(..blank);
        let end = memchr::memmem::find(&bytes.unread, b"\r\n\r\n").map(|at| at + 4);
        let framing = end.map_or(Framing::Doubtful, |end| framing(&bytes.unread[..end]));
        if let (Framing::Length(length), Some(end)) = (framing, end) {
            let body = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.unread.len() - end);
            bytes.unread.drain(..end + body);
            bytes.skip = length - body as u64;
        } else {
            bytes.is_over = true;
            bytes.unread = Vec::new();
        }
        framing
    }

    /// Whether a part of a head has come and not the end of it.
    pub fn has_begun(&self) -> bool {
        let bytes = self.lock();
        bytes.unread.iter().any(|byte| !matches!(byte, b'\r' | b'\n'))
    }

    fn came(&self, came: &[u8]) {
        let mut bytes = self.lock();
        if bytes.is_over {
            return;
        }
        let skipped = usize::try_from(bytes.skip).unwrap_or(usize::MAX).min(came.len());
        bytes.skip -= skipped as u64;
        bytes.unread.extend_from_slice(&came[skipped..]);
    }

    fn lock(&self) -> MutexGuard<'_, Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// By its length.
    Length(u64),
    /// By an empty chunk.
    Chunked,
    /// In a way that two readers may understand differently.
    Doubtful,
}

fn framing(head: &[u8]) -> Framing {
    let is_plain = memchr::memchr2_iter(b'\r', b'\n', head).all(|at| match head[at] {
        b'\r' => head.get(at + 1) == Some(&b'\n'),
        _ => at > 0 && head[at - 1] == b'\r',
    });
    let (mut lengths, mut codings, mut hosts) = (Vec::new(), Vec::new(), 0);
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            lengths.push(value);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            codings.push(value);
        } else if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        }
    }
    match (&lengths[..], &codings[..]) {
        _ if !is_plain || hosts > 1 => Framing::Doubtful,
        ([], []) => Framing::Length(0),
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => Framing::Chunked,
        ([digits], []) if digits.iter().all(u8::is_ascii_digit) => std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| digits.parse().ok())
            .map_or(Framing::Doubtful, Framing::Length),
        _ => Framing::Doubtful,
    }
}

/// A connection whose bytes are seen on their way in.
pub struct Wire {
    stream: TcpStream,
    heads: Heads,
}

impl Wire {
    /// `stream`, whose heads `heads` judges.
    pub fn new(stream: TcpStream, heads: Heads) -> Self {
        Self { stream, heads }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.heads.came(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_two_readers_may_read_in_two_is_doubtful() {
        for (head, expected) in [
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", Framing::Length(5)),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Framing::Length(0)),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", Framing::Chunked),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Framing::Doubtful),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n", Framing::Doubtful),
            ("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", Framing::Doubtful),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Framing::Doubtful),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\n", Framing::Doubtful),
            ("POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n", Framing::Doubtful),
            ("POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", Framing::Doubtful),
            ("POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", Framing::Doubtful),
            ("POST / HTTP/1.1\r\nX: a\nContent-Length: 5\r\n\r\n", Framing::Doubtful),
            ("POST / HTTP/1.1\nContent-Length: 5\r\n\r\n", Framing::Doubtful),
            ("POST / HTTP/1.1\r\nX: a\rb\r\n\r\n", Framing::Doubtful),
        ] {
            assert_eq!(framing(head.as_bytes()), expected, "{head:?}");
        }
    }

    #[test]
    fn empty_lines_before_a_head_are_none() {
        let heads = Heads::default();
        heads.came(b"\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}");
        assert_eq!(heads.next(), Framing::Length(2));
        heads.came(b"\r\n\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n");
        assert_eq!(heads.next(), Framing::Doubtful);
    }

    #[test]
    fn heads_are_found_one_after_the_other_whatever_the_pieces() {
        let stream = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n\n\r\n\r".repeat(3);
        for piece in [1, 3, 7, 1000] {
            let heads = Heads::default();
            let mut pieces = stream.chunks(piece);
            let mut found = 0;
            loop {
                let has_head = memchr::memmem::find(&heads.lock().unread, b"\r\n\r\n").is_some();
                if has_head {
                    assert_eq!(heads.next(), Framing::Length(4));
                    found += 1;
                } else if let Some(piece) = pieces.next() {
                    heads.came(piece);
                } else {
                    break;
                }
            }
            assert_eq!(found, 3, "{piece}");
        }
    }
}
