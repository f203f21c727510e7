//! The connections of a listener, from the first byte to the last.
//!
//! *Takes* a bound listener and who answers. *Promises* that each connection has its place in the crowd, that one that
//! is asked to leave goes at once when it says nothing and after its answer otherwise, and that at the end no new one
//! is taken and what was begun is answered. *Not here*: what is answered, and how long a body may take.

use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::crowd::{Crowd, Guest};
use crate::wire::{self, Heads, Wire};

/// What somebody reads who began a head and did not end it in time; the parser itself only hangs up.
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// How long that may take.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(1);

/// Gives every connection of the listener called `name`, with its place in the crowd, to `begin`, until `shutdown`.
pub async fn take(
    listener: TcpListener,
    name: &str,
    crowd: &Crowd,
    shutdown: &CancellationToken,
    begin: impl Fn(TcpStream, SocketAddr, Guest),
) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let guest = tokio::select! {
                    () = shutdown.cancelled() => return,
                    guest = crowd.admit(peer.ip()) => guest,
                };
                begin(stream, peer, guest);
            }
            Err(error) => {
                tracing::warn!(code = "accept", "a connection to the {name} listener could not be taken: {error}");
                // Out of file handles, mostly: others have to end first.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Lets `service` answer the requests of one connection, whose heads go to `heads` too and may each take `head_within`.
pub async fn answer<S, B>(
    stream: TcpStream,
    guest: Arc<Guest>,
    heads: Heads,
    head_within: Duration,
    service: S,
    shutdown: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S: Unpin,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let _ = stream.set_nodelay(true);
    let mut connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_within)
        .max_buf_size(wire::LARGEST_HEAD)
        .serve_connection(TokioIo::new(Wire::new(stream, heads.clone())), service);
    tokio::select! {
        // What breaks, breaks on the client's side.
        ended = &mut connection => {
            if ended.is_err_and(|error| error.is_timeout()) && heads.has_begun() {
                let mut wire = connection.into_parts().io.into_inner();
                let _ = timeout(LAST_WORD_WITHIN, wire.write_all(TOO_SLOW)).await;
            }
            return;
        }
        () = guest.asked_to_leave() => {
            if guest.is_silent() {
                return;
            }
        }
        () = shutdown.cancelled() => {}
    }
    Pin::new(&mut connection).graceful_shutdown();
    let _ = connection.await;
}
