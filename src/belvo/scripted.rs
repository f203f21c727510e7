//! A server for tests that says what it is told to, byte for byte.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{Budget, Client};
use crate::clock::Clock;
use crate::config;

/// A running server; it ends with this.
pub(crate) struct Script {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Script {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Script {
    /// Answers each request, of which it gets the head, with the bytes of `answer`, and closes.
    pub(crate) async fn start(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::run(answer, None, false).await
    }

    /// Says `answer` and then nothing more; `waits` keeps the connection open.
    pub(crate) async fn silent(answer: Vec<u8>, waits: bool) -> Self {
        Self::run(move |_| answer.clone(), None, waits).await
    }

    /// Sends `start`, and then a byte from time to time, for ever.
    pub(crate) async fn dripping(start: &[u8]) -> Self {
        let start = start.to_vec();
        Self::run(move |_| start.clone(), Some((Duration::from_millis(100), 1)), true).await
    }

    /// Sends a body without end, as fast as it is read.
    pub(crate) async fn endless() -> Self {
        Self::run(|_| b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), Some((Duration::ZERO, 256 << 10)), true).await
    }

    async fn run(
        answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static,
        drip: Option<(Duration, usize)>,
        waits: bool,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    let head = String::from_utf8(head).unwrap();
                    let said = answer(&head);
                    seen.lock().unwrap().push(head);
                    let _ = stream.write_all(&said).await;
                    while let Some((pause, size)) = drip {
                        tokio::time::sleep(pause).await;
                        if stream.write_all(&vec![b'x'; size]).await.is_err() {
                            return;
                        }
                    }
                    if waits {
                        let _ = stream.read_u8().await;
                    }
                });
            }
        });
        Self { address, requests, task }
    }

    /// Heads of the requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// The number in each request's `page=`, 1 where there is none.
    pub(crate) fn pages(&self) -> Vec<u32> {
        self.requests().iter().map(|head| page_of(head)).collect()
    }

    /// A client of this server.
    pub(crate) fn client(&self) -> Client {
        client(self.address)
    }

    /// One that may make so many calls a second.
    pub(crate) fn client_within(&self, requests: u32) -> Client {
        client_of(self.address, requests, Clock::system())
    }

    /// One whose answers come by `clock`.
    pub(crate) fn client_by(&self, clock: Clock) -> Client {
        client_of(self.address, WIDE, clock)
    }

    /// One with settings that `change` has changed.
    pub(crate) fn client_with(&self, change: impl FnOnce(&mut config::Belvo)) -> Client {
        let mut settings = settings(self.address, WIDE);
        change(&mut settings);
        client_by(&settings, Clock::system())
    }
}

/// The page that a request asks for.
pub(crate) fn page_of(head: &str) -> u32 {
    let page = head.split(['?', '&', ' ']).find_map(|part| part.strip_prefix("page="));
    page.map_or(1, |page| page.parse().unwrap())
}

/// A client of the server at `address`, with short deadlines and a wide budget.
pub(crate) fn client(address: SocketAddr) -> Client {
    client_of(address, WIDE, Clock::system())
}

/// Requests a second that no test comes to.
const WIDE: u32 = 10_000;

fn client_of(address: SocketAddr, requests: u32, clock: Clock) -> Client {
    client_by(&settings(address, requests), clock)
}

fn settings(address: SocketAddr, requests: u32) -> config::Belvo {
    config::Belvo {
        base_url: format!("http://{address}").parse().unwrap(),
        token_url: format!("http://{address}").parse().unwrap(),
        widget_url: "https://widget.belvo.io/".parse().unwrap(),
        secret_id: "id".to_owned().into(),
        secret_password: "password".to_owned().into(),
        page_size: 3,
        budget: config::Budget { requests, per: Duration::from_secs(1) },
        reserve: 0.0,
        workers: 1,
        connect_timeout: Duration::from_millis(500),
        idle_timeout: Duration::from_millis(500),
        total_timeout: Duration::from_millis(1500),
        max_body: 4096,
        confirm_after: Duration::ZERO,
    }
}

fn client_by(settings: &config::Belvo, clock: Clock) -> Client {
    let budget = Budget::open(settings.budget, settings.reserve, None, clock.clone()).unwrap();
    Client::new(settings, budget, clock).unwrap()
}

/// An answer with a length.
pub(crate) fn json(status: u16, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()).into_bytes()
}
