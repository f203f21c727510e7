//! The questions in `examples/` have the answers that stand below them, on the demo's data; what is made by a command
//! and kept in the repository is what the command makes.

use std::fmt::Write as _;
use std::path::Path;

use crate::binary::{run, vinculo};

/// Each file is a question and, as comments after it, its answer. With `VINCULO_BLESS=1` the answers are written anew.
#[test]
fn every_example_has_the_answer_that_it_shows() {
    let folder = tempfile::tempdir().unwrap();
    let demo = folder.path().join("demo");
    let made = run(vinculo().args(["demo", "--dir"]).arg(&demo));
    assert_eq!(made.code, Some(0), "{}", made.err);
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let readme = std::fs::read_to_string(examples.join("README.md")).unwrap();
    let mut files: Vec<_> =
        std::fs::read_dir(examples.join("sql")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 12);
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy();
        assert!(readme.contains(&format!("`sql/{name}`")), "{name} is not in the list");
        let text = std::fs::read_to_string(&file).unwrap();
        let question = text.split_once(";\n").map_or(text.as_str(), |(question, _)| question);
        let answered = run(vinculo().arg("sql").arg("--config").arg(demo.join("vinculo.toml")).arg(question));
        assert_eq!(answered.code, Some(0), "{name}: {}", answered.err);
        assert!(answered.out.lines().count() > 2, "{name} has no answer: {}", answered.out);
        let mut expected = format!("{question};\n\n");
        for line in answered.out.trim_end().lines() {
            writeln!(expected, "{}", format!("-- {line}").trim_end()).unwrap();
        }
        if std::env::var_os("VINCULO_BLESS").is_some() {
            std::fs::write(&file, &expected).unwrap();
        } else {
            assert_eq!(text, expected, "{name}");
        }
    }
}

/// With `VINCULO_BLESS=1` the file is written anew.
#[test]
fn the_sources_of_the_dbt_package_are_what_docs_prints() {
    let printed = run(vinculo().args(["docs", "--format", "dbt"]));
    assert_eq!(printed.code, Some(0), "{}", printed.err);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("dbt/models/sources.yml");
    if std::env::var_os("VINCULO_BLESS").is_some() {
        std::fs::write(&file, &printed.out).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap();
    assert_eq!(kept, printed.out, "write it anew: vinculo docs --format dbt > dbt/models/sources.yml");
}
