//! The connections of the admin listener.
//!
//! *Takes* a bound listener and routes. *Promises* that neither silent nor slow clients keep an operator out: a head
//! and a body have to come in time, there are no more than [`MOST_CONNECTIONS`], and who says nothing makes room; that
//! a request which a proxy in front may read otherwise is refused and ends its connection; that what orders or changes
//! something is carried out once it has come, whether its sender waits or not; and that what was begun is answered when
//! the program stops. *Not here*: who may ask, and what.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::service::TowerToHyperService;
use metrics::Counter;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error;
use crate::crowd::{Crowd, Guest};
use crate::lane::result_of;
use crate::listener;
use crate::wire::{Framing, Heads};

/// Connections at a time.
const MOST_CONNECTIONS: usize = 256;

/// How long a head may take, and a connection may stay without one.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// How long a body may take.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// How long the connections that are open may take at the end.
const DRAIN: Duration = Duration::from_secs(5);

/// No body that is taken anywhere is larger; of one that is, this much and a byte is passed on, and refused there.
const LARGEST_BODY: usize = 64 << 10;

/// What is read beyond that, so that its sender reads the answer before the connection ends.
const LEFT_OVER: usize = 4 << 20;

/// Serves `routes` on `listener` until `shutdown`, and then until what was begun is answered.
pub(super) async fn serve(listener: TcpListener, routes: Router, shutdown: CancellationToken) {
    // Nothing is lost with an operator's connection, so that nobody counts them.
    let (crowd, open) = (Crowd::new(MOST_CONNECTIONS, Counter::noop()), TaskTracker::new());
    listener::take(listener, "admin", &crowd, &shutdown, |stream, peer, guest| {
        open.spawn(connection(stream, peer, routes.clone(), guest, open.clone(), shutdown.clone()));
    })
    .await;
    open.close();
    if timeout(DRAIN, open.wait()).await.is_err() {
        tracing::debug!(code = "drain", left = open.len(), "admin connections were still open at the end");
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    routes: Router,
    guest: Guest,
    open: TaskTracker,
    shutdown: CancellationToken,
) {
    let (guest, routes, heads) = (Arc::new(guest), TowerToHyperService::new(routes), Heads::default());
    let service = service_fn(|request| {
        let (guest, routes, open, framing) = (Arc::clone(&guest), routes.clone(), open.clone(), heads.next());
        async move {
            let _busy = guest.busy();
            let read = match framing {
                Framing::Doubtful => {
                    Err(doubtful("send one Content-Length or one Transfer-Encoding, and end lines with CR LF"))
                }
                _ if request.headers().get_all(header::HOST).iter().count() > 1 => Err(doubtful("send one Host")),
                _ => guest.silently(whole(request)).await,
            };
            let is_refused = read.is_err();
            let mut answer = match read {
                Ok(mut request) => {
                    request.extensions_mut().insert(ConnectInfo(peer));
                    let is_order = !request.method().is_safe();
                    let answer = routes.call(request);
                    // An answer is dropped with its connection, and an order must not be cut off between two of its
                    // steps.
                    if is_order { result_of(open.spawn(answer).await)? } else { answer.await? }
                }
                Err(refusal) => refusal,
            };
            // Where the next head begins is known only after a length.
            if is_refused || !matches!(framing, Framing::Length(_)) {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    listener::answer(stream, Arc::clone(&guest), heads.clone(), HEAD_WITHIN, service, shutdown).await;
}

/// The request with all of its body, or why it is refused.
async fn whole(request: Request<Incoming>) -> Result<Request<Body>, Response<Body>> {
    let (head, mut body) = request.into_parts();
    let (mut bytes, mut left) = (Vec::new(), LEFT_OVER);
    let read = async {
        while let Some(frame) = body.frame().await {
            let data = frame.map_err(|_| ())?.into_data().unwrap_or_default();
            let kept = data.len().min(LARGEST_BODY + 1 - bytes.len());
            bytes.extend_from_slice(&data[..kept]);
            left = left.saturating_sub(data.len() - kept);
            if left == 0 {
                break;
            }
        }
        Ok::<_, ()>(())
    };
    match timeout(BODY_WITHIN, read).await {
        Ok(Ok(())) => Ok(Request::from_parts(head, Bytes::from(bytes).into())),
        Ok(Err(())) => Err(doubtful("the body does not end as it should")),
        Err(_) => {
            let seconds = BODY_WITHIN.as_secs();
            let message = format!("send the whole body within {seconds} s");
            Err(error(StatusCode::REQUEST_TIMEOUT, "too_slow", &message))
        }
    }
}

fn doubtful(message: &str) -> Response<Body> {
    error(StatusCode::BAD_REQUEST, "malformed_request", message)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use axum::http::Method;
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::{mpsc, watch};

    use super::*;

    /// A listener that repeats what it is sent, and ends with the test.
    async fn start() -> (SocketAddr, tokio_util::sync::DropGuard) {
        let routes = Router::new().route("/", get(|| async { "here" })).route("/", post(|body: Bytes| async { body }));
        start_with(routes).await
    }

    async fn start_with(routes: Router) -> (SocketAddr, tokio_util::sync::DropGuard) {
        let (listener, end) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), CancellationToken::new());
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, routes, end.clone()));
        (address, end.drop_guard())
    }

    async fn begin(address: SocketAddr, begun: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        stream
    }

    /// What comes until the other side closes.
    async fn rest(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await.expect("the connection ends");
        String::from_utf8(answer).unwrap()
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

    #[tokio::test]
    async fn the_silent_and_the_slow_keep_no_operator_out() {
        let (address, _end) = start().await;
        let mut flood = Vec::new();
        for number in 0..2 * MOST_CONNECTIONS {
            let begun = ["", "GET / HT", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n12"][number % 3];
            flood.push(begin(address, begun).await);
        }
        let begun = Instant::now();
        let answer = rest(begin(address, GET).await).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("here"), "{answer}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_head_or_a_body_that_does_not_come_ends_its_connection() {
        let (address, _end) = start().await;
        let head = begin(address, "GET / HTTP/1.1\r\nHos").await;
        let body = begin(address, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n12").await;
        let (head, body) = tokio::join!(rest(head), rest(body));
        assert!(head.is_empty() || head.starts_with("HTTP/1.1 408"), "{head}");
        assert!(body.starts_with("HTTP/1.1 408") && body.contains("too_slow"), "{body}");
    }

    #[tokio::test]
    async fn what_two_readers_may_read_in_two_is_refused_and_nothing_follows_it() {
        let (address, _end) = start().await;
        let hidden = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for head in [
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        ] {
            let answer = rest(begin(address, &format!("{head}{hidden}")).await).await;
            assert!(answer.starts_with("HTTP/1.1 400") && !answer.contains("here"), "{head:?} {answer}");
        }
        // What is plain may follow each other; what is chunked is the last.
        let plain = rest(begin(address, &format!("{hidden}{GET}")).await).await;
        assert_eq!(plain.matches("here").count(), 2, "{plain}");
        let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
        let answer = rest(begin(address, &format!("{chunked}{hidden}")).await).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ab"), "{answer}");
    }

    #[tokio::test]
    async fn an_order_is_carried_out_although_its_sender_left_and_a_question_is_not() {
        let (begun, mut begins) = mpsc::channel(1);
        let (go_on, wait) = watch::channel(false);
        let (done, mut ends) = mpsc::channel(1);
        let handler = async move |method: Method| {
            begun.send(()).await.unwrap();
            wait.clone().wait_for(|may| *may).await.unwrap();
            done.send(method).await.unwrap();
        };
        let (address, end) = start_with(Router::new().route("/", get(handler.clone()).post(handler))).await;
        for head in [GET, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"] {
            let mut sender = begin(address, head).await;
            begins.recv().await.unwrap();
            sender.shutdown().await.unwrap();
            assert_eq!(rest(sender).await, "", "the listener has seen that nobody waits");
        }
        go_on.send_replace(true);
        drop(end);
        assert_eq!(ends.recv().await, Some(Method::POST));
        assert_eq!(ends.recv().await, None);
    }

    #[tokio::test]
    async fn a_body_comes_whole_and_of_a_large_one_as_much_as_is_refused() {
        let (address, _end) = start().await;
        for (length, expected) in [(0, 0), (9, 9), (LARGEST_BODY, LARGEST_BODY), (1 << 20, LARGEST_BODY + 1)] {
            let post = reqwest::Client::new().post(format!("http://{address}/")).body("x".repeat(length));
            let answer = post.send().await.unwrap();
            assert_eq!(answer.bytes().await.unwrap().len(), expected);
        }
    }
}
