//! Log lines, on stderr, and with the feature `otlp` spans for a collector.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use super::{Global, LogFormat};

/// The log of this process; when it goes, what has not been sent yet gets a moment to leave.
#[must_use]
pub struct Log {
    #[cfg(feature = "otlp")]
    _traces: Option<super::traces::Traces>,
}

/// Starts the log as the command line asks for it. The second start in a process changes nothing.
pub fn start(global: &Global) -> Log {
    let format =
        global.log_format.unwrap_or(if io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json });
    let filter = EnvFilter::builder().parse_lossy(&global.log_level);
    // A full disk behind stderr must not end the program, so a line that cannot be written is dropped.
    let lines = fmt::layer().with_writer(io::stderr).log_internal_errors(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    let log = tracing_subscriber::registry().with(lines.with_filter(filter));
    #[cfg(feature = "otlp")]
    let (log, traces) = {
        let traces = super::traces::Traces::from_environment();
        let layer = traces.as_ref().ok().and_then(|traces| traces.as_ref().map(super::traces::Traces::layer));
        (log.with(layer), traces)
    };
    let _ = log.try_init();
    Log {
        #[cfg(feature = "otlp")]
        _traces: traces.unwrap_or_else(|_| {
            // The error quotes the address, which may hold a password.
            tracing::warn!(
                code = "no_traces",
                "no traces are sent: the collector's address cannot be used; mend the OTEL_EXPORTER_OTLP_… variables"
            );
            None
        }),
    }
}

/// Reads a filter such as `info,vinculo::fetch=debug`. A single word is a level: as the name of a module it would log nothing
/// else.
pub(super) fn check_filter(text: &str) -> Result<String, String> {
    let is_word = !text.contains([',', '=', ':', '[']);
    if is_word && text.parse::<LevelFilter>().is_err() {
        return Err(
            "write off, error, warn, info, debug or trace, or a filter such as info,vinculo::fetch=debug".into()
        );
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}
