//! Log lines, on stderr.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use super::{Global, LogFormat};

/// Starts the log as the command line asks for it. The second start in a process changes nothing.
pub fn start(global: &Global) {
    let format =
        global.log_format.unwrap_or(if io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json });
    let filter = EnvFilter::builder().parse_lossy(&global.log_level);
    // A full disk behind stderr must not end the program, so a line that cannot be written is dropped.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false);
    let _ = match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).with_span_list(false).try_init(),
    };
}

/// Reads a filter such as `info,vinculo::fetch=debug`.
pub(super) fn check_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}
