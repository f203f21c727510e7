//! `vinculo init`: a commented `vinculo.toml` and `jobs/`, and nothing else.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rand::Rng;
use serde_json::json;

use super::{Exit, Global, streams};
use crate::{config, schedule};

/// What `init` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to write
    #[arg(long, value_name = "D", default_value = ".")]
    pub dir: PathBuf,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let written = write(&args.dir)?;
    let out = &mut streams::out();
    if global.json {
        writeln!(out, "{}", json!({ "written": written }))?;
    } else {
        for path in written {
            writeln!(out, "wrote {}", path.display())?;
        }
        writeln!(
            out,
            "next: write Belvo's keys and webhook.authorization into vinculo.toml, then run `vinculo check`"
        )?;
    }
    Ok(Exit::Done)
}

/// Writes `vinculo.toml`, readable by its owner alone because it holds new secrets, and the jobs
/// into `dir`. Gives what was written. Refuses to overwrite, before anything is written.
///
/// # Errors
/// What exists already, or cannot be written.
pub fn write(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let config = dir.join("vinculo.toml");
    let jobs = dir.join("jobs");
    if let Some(existing) = [&config, &jobs].into_iter().find(|path| path.symlink_metadata().is_ok()) {
        bail!("{} exists already: name another folder with --dir, or remove it first", existing.display());
    }
    fs::create_dir_all(&jobs).with_context(|| format!("the folder {} cannot be made", jobs.display()))?;
    let mut written = vec![config.clone()];
    write_new(&config, 0o600, &with_new_secrets(config::DEFAULT))?;
    for (name, text) in schedule::SHIPPED {
        let path = jobs.join(format!("{name}.toml"));
        write_new(&path, 0o644, text)?;
        written.push(path);
    }
    Ok(written)
}

/// The default file with a pepper, an encryption key and an `admin.token` of its own: without the first there is no
/// `person_key`, and one that is the same for all is none; with the last commands can ask the daemon from the first start on.
fn with_new_secrets(default: &str) -> String {
    ["pepper", "encryption_key", "token"].into_iter().fold(default.to_owned(), |text, name| {
        let mut bytes = [0_u8; 32];
        rand::rng().fill_bytes(&mut bytes);
        text.replacen(&format!("\n{name} = \"\""), &format!("\n{name} = \"{}\"", BASE64_STANDARD.encode(bytes)), 1)
    })
}

fn write_new(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let write = || File::options().create_new(true).write(true).mode(mode).open(path)?.write_all(text.as_bytes());
    write().with_context(|| format!("{} cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::{Config, Needs};

    #[test]
    fn what_init_writes_is_read_without_an_error_and_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new");
        let written = write(&dir).unwrap();
        assert_eq!(written.len(), 1 + schedule::SHIPPED.len());
        let file = dir.join("vinculo.toml");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let config = Config::load(Some(&file), [], &[], Needs::default()).unwrap();
        assert!(config.pii.pepper.is_some() && config.state.encryption_key.is_some());
        assert!(config.admin.token.is_some() && config.state.encryption_key_previous.is_none());
        assert_eq!(schedule::load(config.jobs_dir.as_deref()).unwrap().len(), schedule::SHIPPED.len());
    }

    #[test]
    fn init_overwrites_nothing() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("vinculo.toml"), "mine").unwrap();
        assert!(write(folder.path()).unwrap_err().to_string().contains("exists already"));
        assert_eq!(fs::read_to_string(folder.path().join("vinculo.toml")).unwrap(), "mine");
        assert!(!folder.path().join("jobs").exists());
    }
}
