//! How far a command has come, on stderr: a bar on a terminal, a line now and then elsewhere, JSON lines with `--json`.
//!
//! *Promises* that a command that is done within two seconds shows nothing.

use std::io::{self, IsTerminal, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::Global;

/// Who waits for less is told nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two looks of a bar,
const TICK: Duration = Duration::from_millis(100);

/// and between two lines.
const BETWEEN_LINES: Duration = Duration::from_secs(5);

/// How far one piece of work has come; what it shows is gone when this is dropped.
#[derive(Debug)]
pub struct Progress {
    count: Arc<Count>,
    /// Dropped when the work has ended.
    work: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Count {
    what: String,
    begun: Instant,
    done: AtomicU64,
    /// 0 while nobody knows.
    total: AtomicU64,
}

impl Progress {
    /// Begins `what`, such as `refresh`.
    pub fn of(what: &str, global: &Global) -> Self {
        let count =
            Count { what: what.to_owned(), begun: Instant::now(), done: AtomicU64::new(0), total: AtomicU64::new(0) };
        let (count, (work, ended)) = (Arc::new(count), mpsc::channel());
        let show = if global.json {
            Count::show_json
        } else if io::stderr().is_terminal() {
            Count::show_bar
        } else {
            Count::show_lines
        };
        let shown = Arc::clone(&count);
        let thread = std::thread::spawn(move || {
            if lasts(&ended, PATIENCE) {
                show(&shown, &ended);
            }
        });
        Self { count, work: Some(work), thread: Some(thread) }
    }

    /// `done` of `total` are done; without a total nobody knows how many there are.
    pub fn set(&self, done: u64, total: Option<u64>) {
        self.count.done.store(done, Ordering::Relaxed);
        self.count.total.store(total.unwrap_or(0), Ordering::Relaxed);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.work.take());
        if let Some(thread) = self.thread.take() {
            // It only shows; that it failed is no failure of the work.
            let _ = thread.join();
        }
    }
}

/// Whether the work still goes on after `time`.
fn lasts(ended: &Receiver<()>, time: Duration) -> bool {
    matches!(ended.recv_timeout(time), Err(RecvTimeoutError::Timeout))
}

impl Count {
    fn read(&self) -> (u64, Option<u64>) {
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        (done, (total > 0).then_some(total))
    }

    fn show_bar(&self, ended: &Receiver<()>) {
        let bar = ProgressBar::new_spinner().with_elapsed(self.begun.elapsed()).with_message(self.what.clone());
        let known = "{msg} {bar:40} {pos}/{len} {elapsed}, {eta} to go";
        loop {
            let (done, total) = self.read();
            if let (Some(total), None, Ok(style)) = (total, bar.length(), ProgressStyle::with_template(known)) {
                bar.set_style(style);
                bar.set_length(total);
            }
            bar.set_position(done);
            bar.tick();
            if !lasts(ended, TICK) {
                bar.finish_and_clear();
                return;
            }
        }
    }

    fn show_lines(&self, ended: &Receiver<()>) {
        self.each_line(ended, || self.line());
    }

    fn show_json(&self, ended: &Receiver<()>) {
        self.each_line(ended, || self.json().to_string());
    }

    fn each_line(&self, ended: &Receiver<()>, line: impl Fn() -> String) {
        loop {
            // Nobody reads along when this fails; the work goes on.
            let _ = writeln!(io::stderr(), "{}", line());
            if !lasts(ended, BETWEEN_LINES) {
                return;
            }
        }
    }

    fn line(&self) -> String {
        let (what, seconds) = (&self.what, self.begun.elapsed().as_secs());
        match self.read() {
            (done, Some(total)) => format!("{what}: {done} of {total} after {seconds} s"),
            (0, None) => format!("{what}: goes on after {seconds} s"),
            (done, None) => format!("{what}: {done} after {seconds} s"),
        }
    }

    fn json(&self) -> serde_json::Value {
        let (done, total) = self.read();
        json!({ "progress": { "what": self.what, "done": done, "total": total, "seconds": self.begun.elapsed().as_secs() } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_is_known() {
        let count = Count {
            what: "refresh".to_owned(),
            begun: Instant::now(),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
        };
        assert_eq!(count.line(), "refresh: goes on after 0 s");
        count.done.store(3, Ordering::Relaxed);
        assert_eq!(count.line(), "refresh: 3 after 0 s");
        count.total.store(10, Ordering::Relaxed);
        assert_eq!(count.line(), "refresh: 3 of 10 after 0 s");
        let progress = json!({ "progress": { "what": "refresh", "done": 3, "total": 10, "seconds": 0 } });
        assert_eq!(count.json(), progress);
    }

    #[test]
    fn work_that_ends_at_once_shows_nothing_and_is_not_held_up() {
        let begun = Instant::now();
        let (work, ended) = mpsc::channel::<()>();
        drop(work);
        assert!(!lasts(&ended, PATIENCE));
        assert!(begun.elapsed() < PATIENCE);
    }
}
