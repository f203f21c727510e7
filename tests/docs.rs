//! What `docs/` says is true: the tutorial works as it is written, and the reference is what the program says of
//! itself.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap::{CommandFactory, Parser};
use vinculo::admin::metrics::DESCRIBED;
use vinculo::cli::Cli;
use vinculo::config;

/// Begins what a block of the tutorial prints, in the output of all.
const BLOCK: &str = "\u{1e}block ";

#[test]
fn the_tutorial_works_as_it_is_written() {
    let text = fs::read_to_string(docs().join("tutorial.md")).unwrap();
    let blocks = blocks(&text);
    let mut script = "set -euo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n".to_owned();
    let mut expected = Vec::new();
    for (language, block) in blocks {
        match language {
            "sh" => {
                write!(script, "printf '{BLOCK}%s\\n' {}\n{block}\n", expected.len()).unwrap();
                expected.push(None);
            }
            "text" => *expected.last_mut().expect("a command stands before its output") = Some(block.to_owned()),
            other => panic!("what is a block of {other}?"),
        }
    }
    assert!(expected.iter().flatten().count() >= 5, "{expected:?}");
    for (written, free) in ["127.0.0.1:8080", "127.0.0.1:8090", "127.0.0.1:9090"].into_iter().zip(free_addresses()) {
        assert!(script.contains(written));
        script = script.replace(written, &free);
    }
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_vinculo")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut command = without_settings(Command::new("timeout"));
    // A wait in the tutorial that never ends is a failure, too.
    command.args(["300", "bash", "-c", &script]).current_dir(folder.path());
    command.env("PATH", path).env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8_lossy(&stderr).into_owned());
    let log = fs::read_to_string(folder.path().join("serve.log")).unwrap_or_default();
    assert!(status.success(), "{status}\n{out}\n{err}\n{log}");
    let printed: Vec<&str> = out.split(BLOCK).skip(1).map(|part| part.split_once('\n').unwrap().1.trim_end()).collect();
    assert_eq!(printed.len(), expected.len());
    for (printed, expected) in printed.iter().zip(&expected) {
        if let Some(expected) = expected {
            assert_eq!(printed, &expected.trim_end());
        }
    }
}

#[test]
fn every_command_of_the_other_pages_is_accepted() {
    let mut count = 0;
    for page in pages().iter().filter(|page| !page.ends_with("tutorial.md")) {
        let text = fs::read_to_string(page).unwrap();
        let lines =
            blocks(&text).into_iter().filter(|(language, _)| *language == "sh").flat_map(|(_, block)| block.lines());
        for line in
            lines.filter_map(|line| line.find("vinculo ").filter(|at| is_command(line, *at)).map(|at| &line[at..]))
        {
            count += 1;
            if let Err(error) = Cli::try_parse_from(words(line)) {
                panic!("{}: {line}: {error}", page.display());
            }
        }
    }
    assert!(count > 10, "only {count} commands were found");
}

#[test]
fn every_setting_of_the_pages_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vinculo.toml");
    let mut count = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (_, block) in blocks(&text).into_iter().filter(|(language, _)| *language == "toml") {
            count += 1;
            fs::write(&file, block).unwrap();
            if let Err(errors) = config::Config::load(Some(&file), [], &[], config::Needs::default()) {
                panic!("{}: {errors}", page.display());
            }
        }
    }
    assert!(count > 1, "only {count} settings were found");
}

#[test]
fn every_link_of_the_pages_leads_somewhere() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    for page in pages().into_iter().chain([readme]) {
        let text = fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target) {
            let file = target.split('#').next().unwrap();
            if !file.is_empty() && !file.contains("://") {
                assert!(page.with_file_name("").join(file).exists(), "{}: {target}", page.display());
            }
        }
    }
}

#[test]
fn every_page_is_in_the_list_of_pages() {
    let list = fs::read_to_string(docs().join("README.md")).unwrap();
    for page in pages() {
        let name = page.strip_prefix(docs()).unwrap().to_str().unwrap().to_owned();
        assert!(name == "README.md" || list.contains(&format!("({name})")), "docs/README.md does not lead to {name}");
    }
}

#[test]
fn the_reference_is_what_the_program_says() {
    let mut docs_command = without_settings(Command::new(env!("CARGO_BIN_EXE_vinculo")));
    let Output { stdout, status, .. } = docs_command.args(["docs", "--format", "md"]).output().unwrap();
    assert!(status.success());
    let tables = format!("{}\n{}", written_by_the_program(), String::from_utf8(stdout).unwrap());
    for (name, text) in
        [("tables", tables), ("commands", commands()), ("configuration", configuration()), ("metrics", metrics())]
    {
        let path = docs().join("reference").join(name).with_extension("md");
        if std::env::var("VINCULO_DOCS").as_deref() == Ok("write") {
            fs::write(&path, &text).unwrap();
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == text, "docs/reference/{name}.md is old: `make docs` renews it");
    }
}

/// The reference of the command line: what `--help` says, command by command.
fn commands() -> String {
    let mut text = format!(
        "{}\n# Commands\n\nWhat `--help` says. Each command also takes the global options.\n",
        written_by_the_program()
    );
    let mut root = Cli::command().term_width(100);
    root.build();
    let help = root.render_long_help().to_string();
    let (_, options) = help.split_once("Global options:\n").expect("there are global options");
    write!(text, "\n## Global options\n\n```text\n{}\n```\n", options.trim_end()).unwrap();
    for command in root.get_subcommands_mut().filter(|command| command.get_name() != "help") {
        describe(command, "##", &mut text);
    }
    text
}

fn describe(command: &mut clap::Command, heading: &str, text: &mut String) {
    let help = command.render_long_help().to_string();
    let own = help.split("\nGlobal options:").next().unwrap_or_default();
    let name = command.get_bin_name().unwrap_or_default().to_owned();
    write!(text, "\n{heading} {name}\n\n```text\n{}\n```\n", own.trim_end()).unwrap();
    for below in command.get_subcommands_mut().filter(|command| command.get_name() != "help") {
        describe(below, &format!("{heading}#"), text);
    }
}

/// The reference of the configuration: the default file.
fn configuration() -> String {
    format!(
        "{}\n# Configuration\n\nEvery key with its default, as `vinculo init` writes them.\n\n```toml\n{}```\n",
        written_by_the_program(),
        config::DEFAULT
    )
}

/// The reference of the metrics.
fn metrics() -> String {
    let mut text = format!(
        "{}\n# Metrics\n\nWhat `/metrics` on `admin.listen` tells Prometheus; a metric appears when it first counts.\n\n\
         | metric | kind | meaning |\n| --- | --- | --- |\n",
        written_by_the_program()
    );
    for description in DESCRIBED {
        let kind = format!("{:?}", description.kind).to_lowercase();
        writeln!(text, "| `{}` | {kind} | {} |", description.name, description.meaning).unwrap();
    }
    text
}

fn written_by_the_program() -> &'static str {
    "<!-- Written by `make docs`; do not edit. -->"
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

/// Every Markdown file below `docs/`.
fn pages() -> Vec<PathBuf> {
    let (mut pages, mut folders) = (Vec::new(), vec![docs()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|ending| ending == "md") {
                pages.push(entry);
            }
        }
    }
    pages
}

/// The fenced blocks of a page, each with its language.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let fenced = page.split("```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').expect("a fence ends its line")).collect()
}

/// Whether `vinculo` at this place of a line is called, and not only named.
fn is_command(line: &str, at: usize) -> bool {
    let before = &line[..at];
    !before.starts_with('#')
        && (before.is_empty() || before.ends_with(' ') || before.ends_with('('))
        && !before.ends_with("-u ")
        && !before.contains("install ")
        && !before.contains("systemctl ")
}

/// A shell's words, as far as the pages need them: quotes hold words together, and a pipe or a redirection ends them.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (place, text) in line.split('"').enumerate() {
        if place % 2 == 1 {
            words.push(text.to_owned());
            continue;
        }
        for word in text.split_whitespace() {
            if matches!(word, "|" | ">" | "2>" | "&&" | "||" | "&" | "<") {
                return words;
            }
            words.push(word.to_owned());
        }
    }
    words
}

/// Without the settings of whoever runs the tests.
fn without_settings(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("VINCULO_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Three addresses of this machine that nobody listens on.
fn free_addresses() -> [String; 3] {
    let held = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().to_string())
}
