//! The listener that Belvo calls: request → authenticated → durable → queue → answer.
//!
//! *Takes* connections. *Gives* marks in the queue, and the inbound log. *Promises* that a 200 is sent only after the
//! disk has the event, that nothing is told apart by an id, that a handler ends even when its client has left, and that
//! neither slow nor silent clients keep others out. *Not here*: any call to Belvo.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::clock::Clock;
use crate::config;
use crate::crowd::{Crowd, Guest};
use crate::guesses::Guesses;
use crate::listener;
use crate::problems::Problems;
use crate::queue::Queue;
use crate::store::{self, Error, Store};
use crate::wire::{Framing, Heads};

mod door;
mod event;
mod follow_up;
pub mod log;
pub mod replay;
mod reply;

use door::Door;
pub use door::Senders;
use event::Event;
pub use event::REASONS;
use follow_up::record;
pub use follow_up::{Outcome, follow_up};
use reply::Reply;

/// Belvo waits five seconds; what is not durable by then is better refused.
const DURABLE_WITHIN: Duration = Duration::from_millis(3_800);
/// How long the connections that are open may take at the end.
const DRAIN: Duration = Duration::from_secs(8);
/// What is read of a refused body, so that its sender reads the answer before the connection ends,
const LEFT_OVER: u64 = 4 << 20;
/// and for how long.
const LEFT_OVER_FOR: Duration = Duration::from_secs(2);
/// How long whoever tries many values waits for each refusal. It keeps programs busy that try one after the other; what
/// makes guessing hopeless is the length of the value.
const SLOW_REFUSAL: Duration = Duration::from_millis(50);

/// Where events go.
pub struct Inbox {
    /// Told that there is something to fetch.
    pub queue: Queue,
    /// Keeps them.
    pub store: Store,
    /// Says when they came.
    pub clock: Clock,
    /// Told of each event: even one for which nothing is fetched changes the row of its link, which is to be published.
    pub settled: watch::Sender<()>,
    /// Where the problem that the state takes no events is raised, as soon as one event is refused because of it.
    pub problems: Problems,
}

impl Inbox {
    /// The state took an event, or refused it with that code.
    fn hear_of_state(&self, refused: Option<&'static str>) {
        if refused.is_some() || self.problems.has_state() {
            self.problems.hear_of_state(refused, || self.store.impediment());
        }
    }
}

/// Serves `listener` to `senders` until `shutdown`, and then until what was begun is answered, at most eight seconds.
pub async fn run(
    listener: TcpListener,
    settings: config::Webhook,
    senders: Senders,
    inbox: Inbox,
    shutdown: CancellationToken,
) {
    let evicted = metrics::counter!("vinculo_webhook_connections_evicted_total");
    let crowd = Crowd::new(settings.max_connections, evicted);
    let open = TaskTracker::new();
    open.spawn(tell_of_follow_ups(
        inbox.store.followed_up(),
        inbox.queue.clone(),
        inbox.settled.clone(),
        shutdown.clone(),
    ));
    let door = Door::new(&settings, senders);
    let desk = Arc::new(Desk { door, settings, inbox, guesses: Guesses::default(), open: open.clone() });
    listener::take(listener, "webhook", &crowd, &shutdown, |stream, peer, guest| {
        open.spawn(serve(stream, peer.ip(), Arc::clone(&desk), guest, shutdown.clone()));
    })
    .await;
    open.close();
    if timeout(DRAIN, open.wait()).await.is_err() {
        tracing::warn!(code = "drain", left = open.len(), "webhook connections were still open at the end");
    }
}

/// Tells the queue and the publisher of what follows from webhooks, as soon as it is in the state.
async fn tell_of_follow_ups(
    mut followed_up: watch::Receiver<()>,
    queue: Queue,
    settled: watch::Sender<()>,
    shutdown: CancellationToken,
) {
    while let Some(Ok(())) = shutdown.run_until_cancelled(followed_up.changed()).await {
        queue.announce();
        settled.send_replace(());
    }
}

async fn serve(stream: TcpStream, peer: IpAddr, desk: Arc<Desk>, guest: Guest, shutdown: CancellationToken) {
    let (guest, heads) = (Arc::new(guest), Heads::default());
    let service = service_fn(|request| {
        let (desk, heads, guest) = (Arc::clone(&desk), heads.clone(), Arc::clone(&guest));
        async move {
            let _busy = guest.busy();
            let span = tracing::debug_span!("webhook", status = Empty, otel.kind = "server");
            let response = desk.answer(request, peer, &heads, &guest).instrument(span.clone()).await;
            span.record("status", response.status().as_u16());
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let head_within = desk.settings.header_timeout;
    listener::answer(stream, Arc::clone(&guest), heads.clone(), head_within, service, shutdown).await;
}

/// What every request needs.
struct Desk {
    door: Door,
    settings: config::Webhook,
    inbox: Inbox,
    guesses: Guesses,
    /// Connections, and the work of those whose client has left.
    open: TaskTracker,
}

impl Desk {
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: IpAddr,
        heads: &Heads,
        guest: &Guest,
    ) -> Response<Full<Bytes>> {
        let started = Instant::now();
        let framing = heads.next();
        let closes = !matches!(framing, Framing::Length(_));
        let (parts, body) = request.into_parts();
        let refusal =
            if framing == Framing::Doubtful { Err(Reply::Doubtful) } else { self.check(&parts, peer, framing) };
        let reply = match refusal {
            Err(reply) => {
                let has_body = framing != Framing::Length(0);
                if has_body {
                    tokio::spawn(read_left_over(body));
                }
                note_refusal(reply);
                if reply == Reply::Unauthorized {
                    self.slow_down_guesses(peer, &parts.headers, guest).await;
                }
                return reply.into_response(closes || has_body);
            }
            Ok(()) => match guest.silently(self.body(body)).await {
                Ok(body) => self.keep(body).await,
                Err(reply) => reply,
            },
        };
        metrics::histogram!("vinculo_webhook_ack_seconds").record(started.elapsed());
        if reply != Reply::Accepted {
            note_refusal(reply);
        }
        reply.into_response(closes || matches!(reply, Reply::TooSlow | Reply::TooLarge | Reply::Doubtful))
    }

    /// What can be said before the body, in the order that is promised.
    fn check(&self, head: &hyper::http::request::Parts, peer: IpAddr, framing: Framing) -> Result<(), Reply> {
        if head.uri.path() != self.settings.path {
            return Err(Reply::NoSuchPath);
        }
        if head.method != Method::POST {
            return Err(Reply::NotPost);
        }
        if !self.door.knows_address(peer, &head.headers) {
            return Err(Reply::ForeignAddress);
        }
        if !self.door.knows_sender(&head.headers) {
            return Err(Reply::Unauthorized);
        }
        if matches!(framing, Framing::Length(length) if length > self.settings.max_body) {
            return Err(Reply::TooLarge);
        }
        if is_json(&head.headers) { Ok(()) } else { Err(Reply::NotJson) }
    }

    /// Lets whoever tries many values wait for the refusal. A right value never comes here, whatever else came from its
    /// address.
    async fn slow_down_guesses(&self, peer: IpAddr, headers: &HeaderMap, guest: &Guest) {
        let (guesser, now) = (self.door.guesser(peer, headers), Instant::now());
        let is_slowed = self.guesses.wait(guesser, now).is_some();
        if let Some(value) = headers.get(AUTHORIZATION)
            && self.guesses.note(guesser, value.as_bytes(), now)
        {
            tracing::warn!(
                code = "many_guesses",
                "many different wrong values of Authorization come from one address; its refusals are slowed down, and \
                 right values are not. When it is Belvo's own, compare webhook.authorization with Belvo's dashboard"
            );
        }
        if is_slowed {
            guest.silently(tokio::time::sleep(SLOW_REFUSAL)).await;
        }
    }

    async fn body(&self, mut body: Incoming) -> Result<Bytes, Reply> {
        let mut whole = Vec::new();
        let read = async {
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame.map_err(|_| Reply::Doubtful)?.into_data() else { continue };
                if (whole.len() + data.len()) as u64 > self.settings.max_body {
                    return Err(Reply::TooLarge);
                }
                whole.extend_from_slice(&data);
            }
            Ok(())
        };
        match timeout(self.settings.body_timeout, read).await.unwrap_or(Err(Reply::TooSlow)) {
            Ok(()) => Ok(whole.into()),
            Err(reply) => {
                tokio::spawn(read_left_over(body));
                Err(reply)
            }
        }
    }

    /// Makes the event durable. The work goes on when its client leaves, so that it is done whole or not at all.
    async fn keep(self: &Arc<Self>, body: Bytes) -> Reply {
        let Some(event) = Event::read(&body) else { return Reply::NotAnObject };
        let desk = Arc::clone(self);
        let kept = self.open.spawn(async move {
            let inbox = &desk.inbox;
            let received_at = inbox.clock.now();
            let (label, outcome) = (event.label(), Outcome::of(&event).name());
            let reason = event.reason;
            let kept = inbox.store.append(move |tx| record(tx, &event, received_at, &body)).await;
            inbox.hear_of_state(kept.as_ref().err().map(Error::code));
            kept?;
            metrics::counter!("vinculo_webhooks_total", "type" => label, "outcome" => outcome).increment(1);
            if let Some(reason) = reason {
                tracing::warn!(
                    code = "quarantined",
                    reason,
                    "a webhook was not understood and is kept in the quarantine"
                );
            }
            Ok::<_, Error>(())
        });
        let code = match timeout(DURABLE_WITHIN, kept).await {
            Ok(Ok(Ok(()))) => return Reply::Accepted,
            Ok(Ok(Err(error))) => return Reply::Unavailable(error.code()),
            Ok(Err(_panicked)) => store::FAILED,
            Err(_) => "state_slow",
        };
        self.inbox.hear_of_state(Some(code));
        Reply::Unavailable(code)
    }
}

fn note_refusal(reply: Reply) {
    let (code, status) = (reply.code(), reply.status().as_u16());
    metrics::counter!("vinculo_webhook_refused_total", "code" => code).increment(1);
    match reply {
        Reply::Unavailable(_) => tracing::error!(code, status, "a webhook could not be made durable"),
        Reply::NotAnObject => tracing::warn!(
            code,
            status,
            "a webhook with the right Authorization was not a JSON object; its sender may be broken"
        ),
        // Whoever sends these can send many; the metric counts them.
        _ => tracing::debug!(code, status, "a webhook request was refused"),
    }
}

/// Whether the headers allow a JSON body: no content encoding, and a media type that is absent or JSON.
fn is_json(headers: &HeaderMap) -> bool {
    let is_plain =
        headers.get_all(CONTENT_ENCODING).iter().all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (media, more) = (types.next(), types.next());
    let is_json = media.is_none_or(|media| {
        let essence =
            media.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
    });
    is_plain && is_json && more.is_none()
}

/// Reads on for a while what nobody wants: a connection that ends with unread bytes takes its answer with it.
async fn read_left_over(mut body: Incoming) {
    let mut left = LEFT_OVER;
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
            if left == 0 {
                return;
            }
        }
    };
    let _ = timeout(LEFT_OVER_FOR, read).await;
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::queue;
    use crate::store::args;

    const OLD: &str = "Bearer old-value-old-value-old";
    const NEW: &str = "Basic bmV3LXZhbHVlLW5ldy12YWx1ZQ==";
    const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

    fn event(link: &str) -> String {
        format!(
            r#"{{"webhook_id":"0","webhook_type":"OWNERS","webhook_code":"historical_update","link_id":"{link}","external_id":"us-1","data":{{"total_owners":2}}}}"#
        )
    }

    fn post(authorization: &str, body: &str) -> String {
        format!(
            "POST /hook HTTP/1.1\r\nHost: a\r\nAuthorization: {authorization}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    struct Listening {
        address: SocketAddr,
        store: Store,
        queue: Queue,
        shutdown: CancellationToken,
        task: JoinHandle<()>,
        problems: Problems,
        folder: TempDir,
    }

    impl Listening {
        async fn start() -> Self {
            Self::with(|_| {}).await
        }

        async fn with(change: impl FnOnce(&mut config::Webhook)) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("state.db")).unwrap();
            store.follow_up_by(follow_up).await.unwrap();
            let queue = Queue::open(store.clone(), Clock::system()).await.unwrap();
            let mut settings = config::Webhook {
                listen: "127.0.0.1:0".parse().unwrap(),
                path: "/hook".to_owned(),
                authorization: vec![OLD.to_owned().into(), NEW.to_owned().into()],
                allow_ips: vec![],
                trusted_proxies: vec![],
                max_body: 1000,
                max_connections: 1024,
                header_timeout: Duration::from_millis(500),
                body_timeout: Duration::from_millis(300),
            };
            change(&mut settings);
            let listener = TcpListener::bind(settings.listen).await.unwrap();
            let address = listener.local_addr().unwrap();
            let (shutdown, senders) = (CancellationToken::new(), Senders::new(&settings.authorization));
            let (clock, settled) = (Clock::system(), watch::Sender::new(()));
            let problems = Problems::default();
            let inbox =
                Inbox { queue: queue.clone(), store: store.clone(), clock, settled, problems: problems.clone() };
            let task = tokio::spawn(run(listener, settings, senders, inbox, shutdown.clone()));
            Self { address, store, queue, shutdown, task, problems, folder }
        }

        /// What comes back for these bytes, until the connection ends or is quiet.
        async fn say(&self, bytes: &[u8]) -> String {
            self.say_within(Duration::from_millis(1500), bytes).await
        }

        /// The same, where `patience` is how long it may be quiet.
        async fn say_within(&self, patience: Duration, bytes: &[u8]) -> String {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            let _ = stream.write_all(bytes).await;
            let mut answer = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(Ok(1..)) = timeout(patience, async {
                let read = stream.read(&mut buffer).await?;
                answer.extend_from_slice(&buffer[..read]);
                Ok::<_, std::io::Error>(read)
            })
            .await
            {
                if is_whole(&answer) {
                    break;
                }
            }
            String::from_utf8(answer).unwrap()
        }

        /// After what was acknowledged is followed up.
        async fn count(&self, sql: &'static str) -> i64 {
            self.store.write(move |tx| tx.one(sql, args![], |row| row.int(0))).await.unwrap().unwrap()
        }
    }

    fn is_whole(answer: &[u8]) -> bool {
        let text = String::from_utf8_lossy(answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
        length.is_some_and(|length| body.len() >= length.parse::<usize>().unwrap())
    }

    fn status(answer: &str) -> u16 {
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    #[tokio::test]
    async fn an_event_is_kept_marked_and_accepted() {
        let listening = Listening::start().await;
        let mut news = listening.queue.news();
        let answer = listening.say(post(OLD, &event(LINK)).as_bytes()).await;
        assert_eq!(status(&answer), 200, "{answer}");
        assert!(answer.ends_with(r#"{"status":"accepted"}"#));
        let request = queue::ClaimRequest {
            lane: queue::Lane::Unknown,
            is_reversed: false,
            requests: 10,
            fit: Box::new(|_, _| 1),
        };
        let refreshes = listening.queue.claim(request).await.unwrap().requests.concat();
        assert_eq!(refreshes.len(), 1);
        assert_eq!(
            (refreshes[0].link_id.as_str(), refreshes[0].resource.name, refreshes[0].webhook_count),
            (LINK, "owners", Some(2))
        );
        assert!(refreshes[0].is_urgent());
        timeout(Duration::from_secs(1), news.changed()).await.expect("the worker was told").unwrap();
        assert_eq!(
            listening.count("SELECT count(*) FROM webhooks WHERE outcome = 'queued' AND webhook_type = 'OWNERS'").await,
            1
        );
        assert_eq!(listening.count("SELECT count(*) FROM links WHERE external_id = 'us-1'").await, 1);
    }

    #[tokio::test]
    async fn each_check_has_its_status_and_nothing_of_it_is_stored() {
        let listening = Listening::with(|settings| settings.allow_ips = vec!["127.0.0.0/8".parse().unwrap()]).await;
        let good = event(LINK);
        let head = |line: &str, more: &str| format!("{line}\r\nHost: a\r\nAuthorization: {OLD}\r\n{more}\r\n");
        let large = "x".repeat(100_000);
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(400), "]".repeat(400));
        let many: String = "X-Y: a\r\n".repeat(120);
        let gzip = post(OLD, "{}").replace("Content-Type: application/json", "Content-Encoding: gzip");
        let cases: Vec<(String, u16, &str)> = vec![
            (head("POST /other HTTP/1.1", "Content-Length: 2\r\n") + "{}", 404, "not_found"),
            (head("GET /other HTTP/1.1", ""), 404, "not_found"),
            (head("GET /hook HTTP/1.1", ""), 405, "method_not_allowed"),
            (post("Bearer wrong", &good), 401, "unauthorized"),
            (post(&format!("{OLD}\r\nAuthorization: {OLD}"), &good), 401, "unauthorized"),
            (post(OLD, &good).replace("Authorization", "X-Authorization"), 401, "unauthorized"),
            (post("Bearer wrong", &large), 401, "unauthorized"),
            (post(OLD, &large), 413, "too_large"),
            (
                head("POST /hook HTTP/1.1", "Transfer-Encoding: chunked\r\n")
                    + &format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len()),
                413,
                "too_large",
            ),
            (gzip, 415, "not_json"),
            (post(OLD, &good).replace("application/json", "text/plain"), 415, "not_json"),
            (
                post(OLD, &good).replace("application/json", "application/json\r\nContent-Type: text/plain"),
                415,
                "not_json",
            ),
            (post(OLD, "[]"), 400, "not_a_json_object"),
            (post(OLD, ""), 400, "not_a_json_object"),
            (post(OLD, &deep), 400, "not_a_json_object"),
            (head("POST /hook HTTP/1.1", "Content-Length: 10\r\n") + "{", 408, "too_slow"),
            (head("POST /hook HTTP/1.1", "Content-Length: 2\r\nContent-Length: 2\r\n") + "{}", 400, ""),
            (head("POST /hook HTTP/1.1", "Content-Length: 2\r\nContent-Length: 3\r\n") + "{}", 400, ""),
            (head("POST /hook HTTP/1.1", "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", 400, ""),
            (
                head("POST /hook HTTP/1.1", "Content-Length: 2\r\n").replace("Host: a\r\n", "Host: a\n") + "{}",
                400,
                "malformed_request",
            ),
            (head("POST /hook HTTP/1.1", &many), 431, ""),
            (head("POST /hook HTTP/1.1", &format!("X: {large}\r\n")), 431, ""),
        ];
        for (request, expected, code) in cases {
            let answer = listening.say(request.as_bytes()).await;
            let shown: String = request.chars().take(120).collect();
            assert_eq!(status(&answer), expected, "{shown:?}: {answer}");
            assert!(answer.contains(code), "{shown:?}: {answer}");
            assert_eq!(answer.contains("allow: POST"), expected == 405);
        }
        assert_eq!(listening.count("SELECT count(*) FROM webhooks").await, 0);
        assert_eq!(listening.count("SELECT count(*) FROM refreshes").await, 0);
        let refused = Listening::with(|settings| settings.allow_ips = vec!["3.130.254.46/32".parse().unwrap()]).await;
        assert_eq!(status(&refused.say(post("wrong", &good).as_bytes()).await), 403);
    }

    #[tokio::test]
    async fn json_in_every_spelling_is_taken_and_so_is_none() {
        let listening = Listening::start().await;
        let good = event(LINK);
        for media in ["application/json; charset=utf-8", "Application/JSON", "application/vnd.belvo+json"] {
            assert_eq!(
                status(&listening.say(post(NEW, &good).replace("application/json", media).as_bytes()).await),
                200,
                "{media}"
            );
        }
        assert_eq!(
            status(&listening.say(post(NEW, &good).replace("Content-Type: application/json\r\n", "").as_bytes()).await),
            200
        );
        let chunked = format!(
            "POST /hook HTTP/1.1\r\nHost: a\r\nAuthorization: {NEW}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{good}\r\n0\r\n\r\n",
            good.len()
        );
        assert_eq!(status(&listening.say(chunked.as_bytes()).await), 200);
    }

    #[tokio::test]
    async fn while_two_values_stand_neither_is_refused() {
        let listening = Listening::start().await;
        for value in [OLD, NEW, OLD, NEW] {
            assert_eq!(status(&listening.say(post(value, &event(LINK)).as_bytes()).await), 200);
        }
        let after = Listening::with(|settings| settings.authorization.truncate(1)).await;
        assert_eq!(status(&after.say(post(NEW, &event(LINK)).as_bytes()).await), 401);
    }

    #[tokio::test]
    async fn what_is_not_understood_goes_to_the_quarantine() {
        let listening = Listening::start().await;
        let bodies = [
            "{}".to_owned(),
            event("no-uuid"),
            event(LINK).replace("OWNERS", "PLANETS"),
            event(LINK).replace("\"OWNERS\"", "7"),
        ];
        for body in &bodies {
            assert_eq!(status(&listening.say(post(OLD, body).as_bytes()).await), 200, "{body}");
        }
        assert_eq!(
            listening.count("SELECT count(*) FROM webhooks WHERE outcome = 'quarantined' AND reason IS NOT NULL").await,
            4
        );
        assert_eq!(listening.count("SELECT count(*) FROM refreshes").await, 0);
    }

    #[tokio::test]
    async fn a_link_event_sets_the_status() {
        let listening = Listening::start().await;
        let body = event(LINK).replace("OWNERS", "LINK").replace("historical_update", "invalid_credentials");
        assert_eq!(status(&listening.say(post(OLD, &body).as_bytes()).await), 200);
        assert_eq!(listening.count("SELECT count(*) FROM links WHERE status = 'invalid'").await, 1);
        assert_eq!(listening.count("SELECT count(*) FROM webhooks WHERE outcome = 'noted'").await, 1);
    }

    #[tokio::test]
    async fn a_client_that_leaves_before_the_reply_is_served_whole() {
        let listening = Listening::start().await;
        for _ in 0..20 {
            let mut stream = TcpStream::connect(listening.address).await.unwrap();
            stream.write_all(post(OLD, &event(LINK)).as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            drop(stream);
        }
        let one_is_kept = async {
            while listening.count("SELECT count(*) FROM webhooks").await == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), one_is_kept).await.expect("what came whole is kept though nobody waits");
        listening.shutdown.cancel();
        timeout(Duration::from_secs(10), listening.task).await.unwrap().unwrap();
        let kept = "SELECT count(*) FROM webhooks";
        let marks = "SELECT coalesce(sum(marks), 0) FROM refreshes";
        let count = |sql: &'static str| listening.store.write(move |tx| tx.one(sql, args![], |row| row.int(0)));
        assert_eq!(count(kept).await.unwrap(), count(marks).await.unwrap(), "each is there whole or not at all");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_thousand_copies_at_once_are_one_row_with_a_thousand_marks() {
        // What is counted is what comes, however long a busy machine takes for it.
        let long = Duration::from_mins(1);
        let patient = |settings: &mut config::Webhook| (settings.header_timeout, settings.body_timeout) = (long, long);
        let listening = Arc::new(Listening::with(patient).await);
        let copies: Vec<_> = (0..1000)
            .map(|_| {
                let listening = Arc::clone(&listening);
                let event = post(OLD, &event(LINK));
                tokio::spawn(async move { status(&listening.say_within(long, event.as_bytes()).await) })
            })
            .collect();
        for copy in copies {
            assert_eq!(copy.await.unwrap(), 200);
        }
        assert_eq!(listening.count("SELECT count(*) FROM refreshes").await, 1);
        assert_eq!(listening.count("SELECT marks FROM refreshes").await, 1000);
        assert_eq!(listening.count("SELECT count(*) FROM webhooks").await, 1000);
    }

    #[tokio::test]
    async fn who_tries_many_values_is_refused_slowly_and_a_right_value_from_there_is_not() {
        let listening = Listening::with(|settings| {
            settings.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
        })
        .await;
        let from = |client: &str, value: &str| {
            post(value, "{}").replace("Host: a\r\n", &format!("Host: a\r\nX-Forwarded-For: {client}\r\n"))
        };
        let took = async |request: String, expected: u16| {
            let begun = Instant::now();
            let answer = listening.say(request.as_bytes()).await;
            assert_eq!(status(&answer), expected, "{answer}");
            (begun.elapsed(), answer)
        };
        let (_, plain) = took(from("192.0.2.7", "Bearer guess"), 401).await;
        // A sender that was not told of a new value is none who guesses.
        let mut fastest = Duration::MAX;
        for _ in 0..50 {
            fastest = fastest.min(took(from("192.0.2.7", "Bearer guess"), 401).await.0);
        }
        assert!(fastest < SLOW_REFUSAL, "{fastest:?}");
        for number in 1..20 {
            took(from("192.0.2.7", &format!("Bearer guess {number}")), 401).await;
        }
        for value in ["Bearer guess 21", "Bearer guess", "", OLD] {
            let doubled = if value == OLD { format!("{OLD}\r\nAuthorization: {OLD}") } else { value.to_owned() };
            let (elapsed, answer) = took(from("192.0.2.7", &doubled), 401).await;
            assert!(elapsed >= SLOW_REFUSAL, "{value:?} {elapsed:?}");
            assert_eq!(answer.split_once("\r\n\r\n").unwrap().1, plain.split_once("\r\n\r\n").unwrap().1);
        }
        // Others behind the same proxy, and right values from the same address. The fastest of some: a busy machine is
        // no refusal.
        for (client, value, expected) in [("192.0.2.8", "Bearer guess", 401), ("192.0.2.7", NEW, 200)] {
            let mut fastest = Duration::MAX;
            for _ in 0..20 {
                fastest = fastest.min(took(from(client, value), expected).await.0);
            }
            assert!(fastest < SLOW_REFUSAL, "{client} {value}: {fastest:?}");
        }
    }

    #[tokio::test]
    async fn whose_refusal_is_slow_keeps_nobody_out() {
        let listening = Listening::with(|settings| settings.max_connections = 4).await;
        for number in 0..20 {
            let guess = post(&format!("Bearer guess {number}"), "{}");
            assert_eq!(status(&listening.say(guess.as_bytes()).await), 401);
        }
        let mut guessing = Vec::new();
        for number in 0..200 {
            let mut stream = TcpStream::connect(listening.address).await.unwrap();
            stream.write_all(post(&format!("Bearer other {number}"), "{}").as_bytes()).await.unwrap();
            guessing.push(stream);
        }
        let begun = Instant::now();
        assert_eq!(status(&listening.say(post(NEW, &event(LINK)).as_bytes()).await), 200);
        // One after the other in four places, they would wait for two seconds and a half.
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn requests_follow_each_other_on_one_connection() {
        let listening = Listening::start().await;
        let mut stream = TcpStream::connect(listening.address).await.unwrap();
        for request in [post(OLD, &event(LINK)), post(OLD, "{}"), post(NEW, "[]"), post(OLD, &event(LINK))] {
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            while !is_whole(&answer) {
                answer.push(timeout(Duration::from_secs(2), stream.read_u8()).await.unwrap().unwrap());
            }
            assert_eq!(status(&String::from_utf8(answer).unwrap()), if request.ends_with("[]") { 400 } else { 200 });
        }
    }

    #[tokio::test]
    async fn the_silent_and_the_slow_keep_nobody_out() {
        let listening = Listening::with(|settings| {
            settings.max_connections = 4;
            settings.header_timeout = Duration::from_mins(1);
            settings.body_timeout = Duration::from_mins(1);
        })
        .await;
        let mut silent = Vec::new();
        for number in 0..20 {
            let mut stream = TcpStream::connect(listening.address).await.unwrap();
            // Nothing, half a head, or half a body behind the right value.
            let half = post(OLD, &event(LINK));
            let begun = ["", "POST /hook HT", &half[..half.len() - 9]][number % 3];
            stream.write_all(begun.as_bytes()).await.unwrap();
            silent.push(stream);
        }
        let started = Instant::now();
        assert_eq!(status(&listening.say(post(OLD, &event(LINK)).as_bytes()).await), 200);
        assert!(started.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_head_that_does_not_end_is_answered_and_silence_is_not() {
        let listening = Listening::start().await;
        for (said, expected) in [("POST /hook HTTP/1.1\r\nHost: x\r\n", 408), ("", 0)] {
            let mut stream = TcpStream::connect(listening.address).await.unwrap();
            stream.write_all(said.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert_eq!(status(&answer), expected, "{said:?}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_stop_answers_what_was_begun_and_ends_the_silent() {
        let listening = Listening::with(|settings| settings.body_timeout = Duration::from_secs(5)).await;
        let _silent = TcpStream::connect(listening.address).await.unwrap();
        let mut begun = TcpStream::connect(listening.address).await.unwrap();
        let request = post(OLD, &event(LINK));
        let (first, rest) = request.split_at(request.len() - 5);
        begun.write_all(first.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        listening.shutdown.cancel();
        tokio::time::sleep(Duration::from_millis(100)).await;
        begun.write_all(rest.as_bytes()).await.unwrap();
        let mut answer = String::new();
        begun.read_to_string(&mut answer).await.unwrap();
        assert_eq!(status(&answer), 200, "{answer}");
        timeout(Duration::from_secs(2), listening.task).await.expect("nothing is open").unwrap();
    }

    #[tokio::test]
    async fn a_state_that_is_locked_is_told_in_time() {
        let listening = Listening::start().await;
        let path = listening.folder.path().join("state.db");
        let outside = rusqlite::Connection::open(path).unwrap();
        outside.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut stream = TcpStream::connect(listening.address).await.unwrap();
        stream.write_all(post(OLD, &event(LINK)).as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !is_whole(&answer) {
            answer.push(timeout(Duration::from_secs(4), stream.read_u8()).await.expect("an answer in time").unwrap());
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            status(&answer) == 503 && answer.contains("retry-after: 5") && answer.contains("state_locked"),
            "{answer}"
        );
        assert_eq!(listening.problems.standing(), ["state_locked"], "whoever asks is not sent here");
        outside.execute_batch("ROLLBACK").unwrap();
        assert_eq!(status(&listening.say(post(OLD, &event(LINK)).as_bytes()).await), 200);
        assert!(listening.problems.standing().is_empty(), "it takes writes again");
    }
}
