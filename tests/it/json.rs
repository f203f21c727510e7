//! `--json` of every command is what docs/json.md says.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use clap::CommandFactory;
use serde_json::Value;
use vinculo::cli::Cli;

use crate::binary::{Simulate, Site, free_address, run, vinculo};
use crate::harness::AUTHORIZATION;

const CONTRACT: &str = include_str!("../../docs/json.md");

/// What a row of the contract says.
struct Row {
    kind: &'static str,
    members: Vec<&'static str>,
    may_be_null: bool,
}

fn contract() -> BTreeMap<&'static str, Row> {
    let rows = CONTRACT.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|line| {
        let (command, rest) = line.split_once('`').unwrap();
        let mut cells = rest.split('|').skip(1).map(str::trim);
        let (kind, members) = (cells.next().unwrap(), cells.next().unwrap());
        let may_be_null = members.contains("null when");
        // What is beside the point stands in brackets or after a semicolon.
        let members = members.split(';').next().unwrap_or_default();
        let outside = members.split('(').map(|part| part.rsplit(')').next().unwrap_or_default());
        let names = outside.flat_map(|part| part.split('`').skip(1).step_by(2));
        let is_name = |name: &&str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        (command, Row { kind, members: names.filter(is_name).collect(), may_be_null })
    })
    .collect()
}

/// Holds what `command` printed against its row.
fn check(contract: &BTreeMap<&str, Row>, command: &str, out: &str) {
    let row = contract.get(command).unwrap_or_else(|| panic!("docs/json.md does not have `{command}`"));
    let has_members = |value: &Value| {
        for member in &row.members {
            assert!(value.get(member).is_some(), "{command} has no {member}: {value}");
        }
    };
    match row.kind {
        "document" => {
            let document: Value =
                serde_json::from_str(out).unwrap_or_else(|error| panic!("{command} is no document: {error}: {out}"));
            if !(document.is_null() && row.may_be_null) {
                has_members(&document);
            }
        }
        "lines" => {
            assert!(!out.is_empty(), "{command} printed nothing");
            for line in out.lines() {
                let line: Value =
                    serde_json::from_str(line).unwrap_or_else(|error| panic!("{command}: {error}: {line}"));
                assert!(line.is_object(), "{command}: {line}");
                has_members(&line);
            }
        }
        "nothing" => assert_eq!(out, "", "{command}"),
        other => panic!("{command}: docs/json.md says {other}"),
    }
}

#[test]
fn every_command_prints_the_json_that_is_documented() {
    let contract = contract();
    let belvo = free_address();
    let site = Site::new(belvo, &[]);
    let (url, webhook_latency) = (site.webhook_url(), "10ms");
    let webhooks = ["--webhook", &url, "--webhook-authorization", AUTHORIZATION, "--webhook-latency", webhook_latency];
    let simulate = Simulate::start(belvo, &[&["--people", "3", "--no-limit"], &webhooks[..]].concat());
    let job = "schedule = \"0 0 1 1 *\"\ntimezone = \"America/Sao_Paulo\"\naction = \"sync-links\"\n";
    std::fs::write(site.folder.path().join("jobs/compare.toml"), job).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut seen = vec!["serve".to_owned(), "simulate".to_owned()];
    let mut json = |command: &str, arguments: &[&str]| -> String {
        let words: Vec<&str> = command.split(' ').chain(arguments.iter().copied()).chain(["--json"]).collect();
        let ended = run(&mut site.command(&words));
        // What is in the quarantine stays there, and that is told.
        let expected = i32::from(command == "webhooks replay");
        assert_eq!(ended.code, Some(expected), "{words:?}: {}{}", ended.out, ended.err);
        check(&contract, command, &ended.out);
        for line in ended.err.lines().filter(|line| !line.starts_with("warning: ")) {
            assert!(serde_json::from_str::<Value>(line).is_ok(), "{words:?}: {line}");
        }
        seen.push(command.to_owned());
        ended.out
    };

    let served = site.serve();
    runtime.block_on(simulate.tell("connect", "{}"));
    json("links sync", &[]);
    json("refresh", &["--all"]);
    json("rebuild", &[]);
    let unknown = r#"{"webhook_type":"PLANETS","webhook_code":"x","link_id":"2f5d361d-dad6-45d4-a0bf-26d479766067"}"#;
    assert_eq!(runtime.block_on(site.webhook(unknown)).0, 200);
    json("publish", &[]);
    let features: Value = serde_json::from_str(&json("features", &[])).unwrap();
    let as_of = features["as_of_date"].as_str().unwrap();
    let listed = json("links list", &[]);
    let ids: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let id = |place: usize| ids[place]["link_id"].as_str().unwrap();
    json("features explain", &["--link", id(0), "--as-of", as_of]);
    json("features freeze", &["--link", id(0), "--as-of", as_of, "--decision-id", "it-json"]);
    json("links show", &[id(0)]);
    json("widget", &["--external-id", "it-json"]);
    json("jobs", &[]);
    json("jobs run", &["compare"]);
    let webhooks = json("webhooks list", &[]);
    let first: Value = serde_json::from_str(webhooks.lines().next().unwrap()).unwrap();
    json("webhooks show", &[&first["seq"].to_string()]);
    json("webhooks replay", &["--quarantined"]);
    json("sql", &["SELECT * FROM links"]);
    json("subject", &["--link", id(0)]);
    json("docs", &[]);
    json("check", &[]);
    json("doctor", &[]);
    json("status", &[]);
    json("verify", &[]);
    let copy = site.folder.path().join("copy.backup");
    json("backup", &[copy.to_str().unwrap()]);
    json("links delete", &["--link", id(1), "--remote"]);
    json("erase", &["--link", id(2), "--reason", "it"]);
    json("completions", &["bash"]);
    json("man", &[]);
    assert_eq!(served.terminate(), Some(0));
    json("restore", &[copy.to_str().unwrap()]);

    let other = tempfile::tempdir().unwrap();
    for (command, arguments) in [("init", &[][..]), ("demo", &["--people", "3"])] {
        let folder = other.path().join(command);
        let ended = run(vinculo().arg(command).args(arguments).arg("--dir").arg(&folder).arg("--json"));
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        check(&contract, command, &ended.out);
        seen.push(command.to_owned());
    }
    let address = free_address().to_string();
    let mut simulating = vinculo();
    simulating.args(["simulate", "--people", "1", "--listen", &address, "--json"]).stdout(Stdio::piped());
    let mut simulating = simulating.spawn().unwrap();
    let mut first = String::new();
    BufReader::new(simulating.stdout.take().unwrap()).read_line(&mut first).unwrap();
    simulating.kill().unwrap();
    simulating.wait().unwrap();
    check(&contract, "simulate", &first);

    seen.sort();
    assert_eq!(seen, contract.keys().copied().collect::<Vec<_>>(), "every row of docs/json.md is tried");
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        let is_listed = seen.iter().any(|seen| seen.split(' ').next() == Some(name));
        assert!(is_listed, "docs/json.md does not have `{name}`");
    }
}

#[test]
fn what_lasts_tells_how_far_it_has_come_in_json_lines_or_in_words() {
    let simulate = Simulate::start(free_address(), &["--people", "2", "--no-limit", "--latency", "2500ms"]);
    let site = Site::new(simulate.address, &[]);
    tokio::runtime::Runtime::new().unwrap().block_on(simulate.tell("connect", "{}"));
    let ended = run(&mut site.command(&["links", "sync", "--json"]));
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let lines: Vec<Value> = ended.err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let progress = lines.iter().find_map(|line| line.get("progress")).expect("a line of progress");
    assert_eq!(progress["what"], "sync-links");
    let ended = run(&mut site.command(&["refresh", "--all"]));
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(ended.err.contains("\nrefresh: ") || ended.err.starts_with("refresh: "), "{}", ended.err);
}
