//! What README.md and ARCHITECTURE.md say about the program is true of the program.

use std::collections::BTreeSet;
use std::path::Path;

use clap::{CommandFactory, Parser};
use vinculo::cli::{Cli, Exit};
use vinculo::schema;

const README: &str = include_str!("../README.md");
const ARCHITECTURE: &str = include_str!("../ARCHITECTURE.md");

#[test]
fn every_command_line_of_the_readme_is_accepted() {
    let lines = fenced("sh").chain(inline_code()).filter(|line| line.starts_with("vinculo "));
    let lines: Vec<Vec<String>> = lines.map(words).filter(|words| words.len() > 1).collect();
    assert!(lines.len() >= 7, "only {} commands were found", lines.len());
    for line in lines {
        if let Err(error) = Cli::try_parse_from(&line) {
            panic!("{line:?}: {error}");
        }
    }
}

#[test]
fn no_command_that_is_there_is_called_missing() {
    let missing = section("Not there yet");
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        assert!(!missing.contains(&format!("`{name}`")), "`{name}` is there; the README says that it is not");
    }
}

#[test]
fn the_exit_codes_of_the_readme_are_those_of_the_program() {
    let listed: BTreeSet<u8> = README.lines().filter_map(first_cell).filter_map(|cell| cell.parse().ok()).collect();
    let all = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Partly,
        Exit::Config,
        Exit::Credentials,
        Exit::Down,
        Exit::RateLimited,
        Exit::State,
        Exit::Damaged,
        Exit::Interrupted,
    ];
    // A new code does not compile here until it stands above, and then in the README.
    for exit in all {
        match exit {
            Exit::Done
            | Exit::Failed
            | Exit::Usage
            | Exit::Partly
            | Exit::Config
            | Exit::Credentials
            | Exit::Down
            | Exit::RateLimited
            | Exit::State
            | Exit::Damaged
            | Exit::Interrupted => {}
        }
    }
    assert_eq!(listed, all.map(|exit| exit as u8).into());
}

#[test]
fn the_tables_of_the_readme_are_those_of_the_schema() {
    let rows = section("Reading the lake").lines().filter_map(first_cell);
    let listed: BTreeSet<&str> = rows.filter_map(|cell| cell.strip_prefix('`')?.strip_suffix('`')).collect();
    let tables: BTreeSet<&str> = schema::get().tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(listed, tables);
}

#[test]
fn the_question_of_the_readme_is_the_one_that_the_demo_answers() {
    let question = fenced("sql").collect::<Vec<_>>().join("\n");
    assert!(question.starts_with("SELECT "));
    assert!(include_str!("../src/cli/demo.rs").contains(&question));
}

#[test]
fn the_make_targets_of_the_readme_exist() {
    let targets: Vec<&str> = inline_code().filter_map(|code| code.strip_prefix("make ")).collect();
    assert!(targets.contains(&"demo") && targets.contains(&"test"));
    for target in targets {
        let rule = format!("\n{target}:");
        assert!(include_str!("../Makefile").contains(&rule), "there is no `make {target}`");
    }
}

#[test]
fn the_architecture_names_every_module() {
    let named: BTreeSet<String> =
        ARCHITECTURE.lines().filter_map(first_cell).map(|cell| cell.replace('`', "")).collect();
    let modules =
        include_str!("../src/lib.rs").lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    for module in modules {
        assert!(named.contains(module), "ARCHITECTURE.md does not say what `{module}` is");
    }
}

#[test]
fn the_files_that_the_architecture_names_exist() {
    let is_source = |code: &&str| Path::new(code).extension().is_some_and(|ending| ending == "rs" || ending == "sql");
    let files = ARCHITECTURE.split('`').skip(1).step_by(2).filter(is_source);
    for file in files.filter(|file| !file.contains('<')) {
        let path = format!("{}/src/{}", env!("CARGO_MANIFEST_DIR"), file.trim_start_matches("src/"));
        assert!(Path::new(&path).is_file(), "there is no {file}");
    }
}

/// The lines of the README's fenced blocks in `language`.
fn fenced(language: &str) -> impl Iterator<Item = &'static str> {
    let fence = format!("```{language}\n");
    let blocks: Vec<&str> = README.split(&fence).skip(1).filter_map(|rest| rest.split("\n```").next()).collect();
    blocks.into_iter().flat_map(str::lines)
}

/// What stands between backticks in the README's prose.
fn inline_code() -> impl Iterator<Item = &'static str> {
    let prose = README.split("```").step_by(2);
    prose.flat_map(|text| text.split('`').skip(1).step_by(2))
}

/// The text below the README's heading `title`.
fn section(title: &str) -> &'static str {
    let rest = README.split(&format!("\n## {title}\n")).nth(1).expect("the README has this section");
    rest.split("\n## ").next().unwrap_or(rest)
}

/// The first cell of a row of a Markdown table.
fn first_cell(line: &str) -> Option<&str> {
    line.strip_prefix("| ")?.split(" |").next().map(str::trim)
}

/// A shell's words, as far as the README needs them: double quotes hold words together.
fn words(line: &str) -> Vec<String> {
    let quoted = line.split('"').enumerate();
    quoted
        .flat_map(|(place, text)| match place % 2 {
            0 => text.split_whitespace().map(str::to_owned).collect(),
            _ => vec![text.to_owned()],
        })
        .collect()
}
