//! The commands as their users type them.

use std::process::Command;

use clap::CommandFactory;
use vinculo::cli::Cli;

use crate::binary::{Simulate, Site, free_address, run, vinculo};

/// Every command that there is.
fn commands() -> Vec<String> {
    let commands: Vec<String> = Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
    assert!(commands.len() >= 24, "{commands:?}");
    commands
}

#[test]
fn every_command_has_help() {
    let overview = run(vinculo().arg("--help"));
    assert_eq!(overview.code, Some(0));
    for command in commands() {
        assert!(overview.out.contains(&format!("\n  {command} ")), "{command} is not in the overview");
        let help = run(vinculo().args([command.as_str(), "--help"]));
        assert_eq!(help.code, Some(0), "{command}: {}", help.err);
        assert!(help.out.contains(&format!("Usage: vinculo {command}")), "{}", help.out);
    }
}

#[test]
fn shells_complete_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = run(vinculo().args(["completions", shell]));
        assert_eq!(ended.code, Some(0), "{shell}: {}", ended.err);
        for command in commands() {
            assert!(ended.out.contains(&command), "{shell} does not know {command}");
        }
    }
}

#[test]
fn what_is_no_command_is_a_matter_of_usage() {
    let ended = run(vinculo().arg("publsh"));
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("publish"), "no similar name in: {}", ended.err);
}

#[test]
fn init_writes_what_check_accepts_and_never_overwrites() {
    let folder = tempfile::tempdir().unwrap();
    let init = || run(vinculo().args(["init", "--dir"]).arg(folder.path()));
    let first = init();
    assert_eq!(first.code, Some(0), "{}", first.err);
    let config = folder.path().join("vinculo.toml");
    let before = std::fs::read(&config).unwrap();
    let again = init();
    assert_ne!(again.code, Some(0));
    assert!(again.err.contains("vinculo.toml"), "{}", again.err);
    assert_eq!(std::fs::read(&config).unwrap(), before);

    // Without Belvo's keys it says which are missing; with them it is content.
    let keys = [
        ("VINCULO_BELVO__SECRET_ID", "id"),
        ("VINCULO_BELVO__SECRET_PASSWORD", "password"),
        ("VINCULO_WEBHOOK__AUTHORIZATION", "Bearer 0123456789abcdef"),
    ];
    let check = run(vinculo().arg("check").arg("--config").arg(&config).envs(keys));
    assert_eq!(check.code, Some(0), "{}{}", check.out, check.err);
    for job in ["fetch-stale-links", "publish", "recollect-single-links", "reconcile-links"] {
        assert!(check.out.contains(job), "no {job} in: {}", check.out);
    }
}

#[test]
fn the_simulator_has_its_people_connected_unless_told_otherwise_and_says_that_it_was_interrupted() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let links = |simulate: &Simulate| -> u64 {
        let state: serde_json::Value = serde_json::from_str(&runtime.block_on(simulate.ask("state"))).unwrap();
        state["links"].as_u64().unwrap()
    };
    let connected = Simulate::connected(free_address(), &["--people", "3", "--fault", "AP5,times=1"]);
    // It listens before it has connected them.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while links(&connected) != 3 {
        assert!(std::time::Instant::now() < deadline, "{} links", links(&connected));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(links(&Simulate::start(free_address(), &["--people", "3"])), 0);
    assert_eq!(connected.interrupt(), Some(130));
    let refused = run(vinculo().args(["simulate", "--fault", "AP11"]));
    assert!(refused.code == Some(2) && refused.err.contains("plain HTTP"), "{refused:?}");
}

#[test]
fn the_lake_is_for_its_group_whatever_the_umask_of_who_publishes() {
    use std::os::unix::fs::PermissionsExt as _;

    let site = Site::new(free_address(), &[]);
    let publish = site.command(&["publish"]);
    let mut command = Command::new("sh");
    command.args(["-c", "umask 077; exec \"$0\" \"$@\""]).arg(publish.get_program()).args(publish.get_args());
    for (name, value) in publish.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let ended = run(&mut command);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let snapshot = std::fs::canonicalize(site.lake().join("current")).unwrap();
    for folder in [site.lake().as_path(), snapshot.parent().unwrap(), &snapshot] {
        let mode = folder.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o750, "{}", folder.display());
    }
}
