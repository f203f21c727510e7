//! Spans, sent to a collector over OTLP/HTTP: the feature `otlp`.
//!
//! *Takes* the variables that OpenTelemetry names, `OTEL_EXPORTER_OTLP_ENDPOINT` first. *Gives* a layer of the log.
//! *Promises* that no work waits for a collector: spans leave from threads of their own, and those that it does not take are
//! dropped; and that spans hold what a log line may hold, and nothing else. *Not here*: which spans there are; each step
//! opens its own.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Key, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    HttpExporterBuilderSet, Protocol, SpanExporter, SpanExporterBuilder, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use reqwest::redirect;
use tokio::runtime::{Builder, Handle, Runtime};
use tracing::level_filters::LevelFilter;
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;

/// Where spans go: the first of these that is set.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// How long the last spans have to leave when the process ends.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is read of an answer.
const LARGEST_ANSWER: usize = 64 << 10;

/// The way of spans to a collector.
pub struct Traces {
    provider: SdkTracerProvider,
    /// Where requests run, so that the last ones can when the program's own runtime has ended.
    runtime: Option<Runtime>,
}

impl Traces {
    /// As the environment says; `None` when it names no collector, or `OTEL_SDK_DISABLED` is `true`.
    ///
    /// # Errors
    /// When the address is none, or threads or TLS cannot be set up.
    pub fn from_environment() -> Result<Option<Self>, Box<dyn Error>> {
        let is_off = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
        let named = ENDPOINTS.into_iter().filter_map(|name| std::env::var(name).ok()).find(|value| !value.is_empty());
        let Some(endpoint) = named.filter(|_| !is_off) else { return Ok(None) };
        Self::new(&endpoint, SpanExporter::builder().with_http()).map(Some)
    }

    /// The way to `endpoint`, which `exporter` knows by itself.
    fn new(endpoint: &str, exporter: SpanExporterBuilder<HttpExporterBuilderSet>) -> Result<Self, Box<dyn Error>> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("vinculo-otlp").enable_all().build()?;
        let messenger = Messenger::new(runtime.handle().clone(), endpoint)?;
        let exporter = exporter.with_protocol(Protocol::HttpBinary);
        let exporter = exporter.with_http_client(messenger);
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter.build()?).with_resource(resource()).build();
        Ok(Self { provider, runtime: Some(runtime) })
    }

    /// What listens to the spans of this program, and to the log lines in them.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        // What the libraries below say is not checked for personal data.
        let ours = FilterFn::new(|what| {
            let least = if what.is_span() { Level::DEBUG } else { Level::INFO };
            what.target().starts_with("vinculo") && *what.level() <= least
        });
        let ours = ours.with_max_level_hint(LevelFilter::DEBUG);
        let layer = tracing_opentelemetry::layer().with_tracer(self.provider.tracer("vinculo"));
        layer.with_location(false).with_threads(false).with_filter(ours)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        // Whatever has not left by then is lost with the process.
        let _ = self.provider.shutdown_with_timeout(LAST_WORDS);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Who speaks: `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`, or this program's own name.
fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let named = Resource::builder().with_attribute(version.clone()).build();
    let name = named.get(&Key::from_static_str("service.name"));
    if name.is_none_or(|name| name.as_str().starts_with("unknown_service")) {
        return Resource::builder().with_attribute(version).with_service_name("vinculo").build();
    }
    named
}

/// Carries spans with the client that Belvo is called with, so that there is one TLS in the program.
#[derive(Debug, Clone)]
struct Messenger {
    runtime: Handle,
    http: reqwest::Client,
    is_heard: Arc<AtomicBool>,
}

impl Messenger {
    fn new(runtime: Handle, endpoint: &str) -> io::Result<Self> {
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("vinculo/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .no_proxy()
            .timeout(TIMEOUT);
        if endpoint.starts_with("http://") {
            // No certificate is ever looked at, so a machine without any will do.
            http = http.tls_certs_only([]);
        }
        let http = http.build().map_err(io::Error::other)?;
        Ok(Self { runtime, http, is_heard: Arc::new(AtomicBool::new(true)) })
    }

    async fn carry(self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.ask(request).await;
        let is_heard = answer.as_ref().is_ok_and(|answer| answer.status().is_success());
        if self.is_heard.swap(is_heard, Ordering::Relaxed) != is_heard {
            if is_heard {
                tracing::info!("the collector takes traces again");
            } else {
                let status = answer.as_ref().ok().map(|answer| answer.status().as_u16());
                tracing::warn!(
                    code = "traces_dropped",
                    status,
                    "the collector does not take traces; they are dropped until it does"
                );
            }
        }
        answer
    }

    async fn ask(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut response = self.http.execute(request.try_into()?).await.map_err(reqwest::Error::without_url)?;
        let mut answer = Response::new(Bytes::new());
        *answer.status_mut() = response.status();
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > LARGEST_ANSWER {
                return Err("the collector's answer is too large".into());
            }
            body.extend_from_slice(&chunk);
        }
        *answer.body_mut() = body.into();
        Ok(answer)
    }
}

impl HttpClient for Messenger {
    // As `async_trait` writes it.
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        // The thread that gathers spans is none of a runtime.
        let carrying = self.runtime.spawn(self.clone().carry(request));
        Box::pin(async move { carrying.await? })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};
    use std::sync::Mutex;
    use std::time::Instant;

    use tokio_util::sync::CancellationToken;
    use tracing::Dispatch;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::clock::Clock;
    use crate::config::{Config, Needs};
    use crate::daemon::{Daemon, Parts};
    use crate::link_id::log_tag;
    use crate::operations::Order;
    use crate::runs::Reason;
    use crate::simulate::{self, Simulation};

    const AUTHORIZATION: &str = "Bearer traces-webhook-authorization";

    /// A collector that keeps what it is sent.
    struct Collector {
        address: SocketAddr,
        heard: Arc<Mutex<Vec<u8>>>,
    }

    impl Collector {
        fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let (address, heard) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<u8>>>::default());
            let kept = Arc::clone(&heard);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = BufReader::new(stream.unwrap());
                    while let Some(body) = read(&mut stream) {
                        kept.lock().unwrap().extend_from_slice(&body);
                        let answer =
                            "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
                        stream.get_mut().write_all(answer.as_bytes()).unwrap();
                    }
                }
            });
            Self { address, heard }
        }
    }

    fn to(collector: SocketAddr) -> Traces {
        let endpoint = format!("http://{collector}/v1/traces");
        Traces::new(&endpoint, SpanExporter::builder().with_http().with_endpoint(&endpoint)).unwrap()
    }

    /// The body of the next request; `None` at the end.
    fn read(stream: &mut BufReader<std::net::TcpStream>) -> Option<Vec<u8>> {
        let (mut line, mut length) = (String::new(), 0);
        stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
        assert!(line.starts_with("POST /v1/traces "), "{line}");
        while line.trim() != "" {
            line.clear();
            stream.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        Some(body)
    }

    fn config(folder: &std::path::Path, belvo: SocketAddr) -> Config {
        let file = folder.join("vinculo.toml");
        let text = format!(
            "[belvo]\nbase_url = \"http://{belvo}\"\ntoken_url = \"http://{belvo}\"\nsecret_id = \"{}\"\n\
             secret_password = \"{}\"\n[webhook]\nlisten = \"127.0.0.1:0\"\nauthorization = [\"{AUTHORIZATION}\"]\n\
             allow_ips = []\n[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"a-token-of-the-operator\"\n\
             [lake]\npublish_quiet = \"20ms\"\n",
            simulate::SECRET_ID,
            simulate::SECRET_PASSWORD,
        );
        std::fs::write(&file, text).unwrap();
        std::fs::create_dir_all(folder.join("jobs")).unwrap();
        let job = "schedule = \"0 3 * * *\"\ntimezone = \"UTC\"\naction = \"sync-links\"\n";
        std::fs::write(folder.join("jobs/reconcile-links.toml"), job).unwrap();
        let config = Config::load(Some(&file), [], &[], Needs { belvo: true, webhook: true }).unwrap();
        config.check_folders().unwrap();
        config
    }

    /// Two simulated people connect, and a job runs; gives the ids of their links and what Belvo says of them.
    async fn two_people_connect(folder: &std::path::Path) -> (Vec<String>, Vec<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let belvo = listener.local_addr().unwrap();
        let daemon = Daemon::start(&config(folder, belvo), Clock::system(), Parts::All).await.unwrap();
        let settings = simulate::Settings {
            people: 2,
            webhook: Some(format!("http://{}/webhooks/belvo", daemon.webhook_address.unwrap()).parse().unwrap()),
            webhook_authorization: AUTHORIZATION.to_owned(),
            webhook_latency: Duration::from_millis(10),
            limit: None,
            ..simulate::Settings::default()
        };
        let (simulation, shutdown) = (Simulation::new(settings), CancellationToken::new());
        let serving = tokio::spawn(simulation.clone().serve(listener, shutdown.clone()));
        simulation.connect_all();
        simulation.wait_until_delivered().await;
        daemon.until_idle().await.unwrap();
        let order = Order::Job("reconcile-links".to_owned());
        let run = daemon.operations.start(order, Reason::Api).await.unwrap();
        let mut run = daemon.operations.runs.get(&run).await.unwrap().unwrap();
        while run.finished_at.is_none() {
            run = daemon.operations.runs.get_news(&run, Duration::from_secs(1)).await.unwrap().unwrap();
        }
        let links = simulation.link_ids();
        let mut said = Vec::new();
        for link in &links {
            for resource in ["owners", "employments"] {
                let url = format!("http://{belvo}/api/br/{resource}/?link={link}");
                let asked =
                    reqwest::Client::new().get(url).basic_auth(simulate::SECRET_ID, Some(simulate::SECRET_PASSWORD));
                said.push(asked.send().await.unwrap().text().await.unwrap());
            }
        }
        daemon.stop().await;
        shutdown.cancel();
        serving.await.unwrap().unwrap();
        (links, said)
    }

    /// The texts of these fields anywhere in `json`, and amounts.
    fn personal(json: &serde_json::Value, found: &mut Vec<String>) {
        const FIELDS: [&str; 7] =
            ["display_name", "email", "phone_number", "address", "document_number", "name", "base_amount"];
        match json {
            serde_json::Value::Array(items) => items.iter().for_each(|item| personal(item, found)),
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    if FIELDS.contains(&name.as_str()) && text.len() >= 7 {
                        found.push(text);
                    }
                    personal(value, found);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn spans_of_every_step_reach_the_collector_and_no_personal_data_does() {
        let (collector, folder) = (Collector::start(), tempfile::tempdir().unwrap());
        let traces = to(collector.address);
        let dispatch = Dispatch::new(tracing_subscriber::registry().with(traces.layer()));
        let listening = dispatch.clone();
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            // The threads of this test alone, and those that block for it.
            .on_thread_start(move || std::mem::forget(tracing::dispatcher::set_default(&listening)))
            .build()
            .unwrap();
        let connected = || runtime.block_on(two_people_connect(folder.path()));
        let (links, said) = tracing::dispatcher::with_default(&dispatch, connected);
        // As at the end of the program.
        drop(traces);

        let heard = collector.heard.lock().unwrap();
        let holds = |bytes: &[u8]| heard.windows(bytes.len()).any(|window| window == bytes);
        for name in ["webhook", "refresh", "fetch", "call", "publish", "run", "job"] {
            // The form of protobuf: the field of a span's name, the length, the name.
            let field = [&[5 << 3 | 2, u8::try_from(name.len()).unwrap()], name.as_bytes()].concat();
            assert!(holds(&field), "no {name} arrived in {} bytes", heard.len());
        }
        for text in ["reconcile-links", "service.name", env!("CARGO_PKG_VERSION")] {
            assert!(holds(text.as_bytes()), "{text} did not arrive");
        }
        assert!(
            links.len() == 2 && links.iter().any(|link| holds(log_tag(link).as_bytes())),
            "no refresh is of a link"
        );
        let mut needles =
            vec![simulate::SECRET_ID.to_owned(), simulate::SECRET_PASSWORD.to_owned(), AUTHORIZATION[7..].to_owned()];
        needles.extend(links);
        for text in &said {
            personal(&serde_json::from_str(text).unwrap(), &mut needles);
        }
        assert!(needles.len() > 20, "{}", needles.len());
        for needle in needles {
            assert!(!holds(needle.as_bytes()), "{needle:?} arrived");
        }
    }

    #[test]
    fn a_collector_that_is_away_holds_nothing_up() {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let traces = to(nobody);
        let begun = Instant::now();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(traces.layer()), || {
            for number in 0..100_000 {
                tracing::info_span!("work", number).in_scope(|| ());
            }
        });
        drop(traces);
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    }
}
