//! What the service manager is told: ready, reloading, stopping, alive.
//!
//! *Takes* the socket that `NOTIFY_SOCKET` names. *Promises* that without one nothing happens, and that a manager which
//! does not listen never holds up or ends the daemon.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    way: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As `environment` has it: `NOTIFY_SOCKET`, and `WATCHDOG_USEC` where it is meant for the process `pid`.
    pub fn of(environment: impl Fn(&str) -> Option<String>, pid: u32) -> Self {
        let way = environment("NOTIFY_SOCKET").and_then(|name| match way_to(&name) {
            Ok(way) => Some(way),
            Err(error) => {
                tracing::warn!(code = "notify_socket", "the service manager cannot be told anything: {error}");
                None
            }
        });
        let is_meant = environment("WATCHDOG_PID").is_none_or(|wanted| wanted == pid.to_string());
        let watchdog = environment("WATCHDOG_USEC").and_then(|micros| micros.parse().ok()).map(Duration::from_micros);
        Self { way, watchdog: watchdog.filter(|within| is_meant && !within.is_zero()) }
    }

    /// How often [`Notifier::alive`] should be said: twice in the time after which silence means death. `None` when
    /// nobody waits for it.
    pub fn interval(&self) -> Option<Duration> {
        self.way.as_ref().and(self.watchdog).map(|within| within / 2)
    }

    /// Everything is started.
    pub fn ready(&self) {
        self.say("READY=1\nSTATUS=ready");
    }

    /// The configuration is being read again; [`Notifier::ready`] ends it.
    pub fn reloading(&self) {
        self.say("RELOADING=1\nSTATUS=reading the configuration again");
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=finishing what was begun");
    }

    /// Still alive.
    pub fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    /// Why nothing is said any more; shown by `systemctl status`.
    pub fn complain(&self, complaint: &str) {
        self.say(&format!("STATUS=not well: {complaint}"));
    }

    fn say(&self, text: &str) {
        if let Some((socket, address)) = &self.way {
            // Not being heard is no reason to end, and the watchdog notices.
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

fn way_to(name: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager with a full queue must not hold the daemon up.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_hears_what_is_said_by_a_path_or_by_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify").to_str().unwrap().to_owned();
        let name = format!("@vinculo-test-{}", std::process::id());
        let listeners = [
            UnixDatagram::bind(&path).unwrap(),
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name[1..]).unwrap()).unwrap(),
        ];
        for (listener, socket) in listeners.iter().zip([path, name]) {
            let environment = |key: &str| match key {
                "NOTIFY_SOCKET" => Some(socket.clone()),
                "WATCHDOG_USEC" => Some("60000000".to_owned()),
                "WATCHDOG_PID" => Some("7".to_owned()),
                _ => None,
            };
            assert_eq!(Notifier::of(environment, 8).interval(), None);
            let notifier = Notifier::of(environment, 7);
            assert_eq!(notifier.interval(), Some(Duration::from_secs(30)));
            let mut heard = [0; 200];
            notifier.ready();
            let length = listener.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], b"READY=1\nSTATUS=ready");
            notifier.alive();
            let length = listener.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], b"WATCHDOG=1");
        }
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let notifier = Notifier::of(|_| None, 7);
        notifier.ready();
        assert_eq!(notifier.interval(), None);
    }
}
