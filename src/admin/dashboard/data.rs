//! `GET /data`, `GET /data/{table}`: what readers see, how large it is, what no schema knows, and what each column
//! means.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use maud::{Markup, html};

use super::lang::Lang;
use super::layout::{self, Page, Tab, ago_text};
use super::session::Viewer;
use super::{Board, Trouble, escaped};
use crate::clock::Timestamp;
use crate::features::dictionary;
use crate::publish::{Lake, Manifest};
use crate::records::Drift;
use crate::schema;

pub(super) fn routes() -> Router<Board> {
    Router::new().route("/data", get(show)).route("/data/{table}", get(table))
}

async fn show(State(board): State<Board>, viewer: Viewer) -> Result<Markup, Trouble> {
    let (lang, now, lake) = (viewer.lang, board.operations.clock.now(), board.settings.lake.clone());
    let drift = board.operations.store.read(Drift::counted).await?;
    let manifest = tokio::task::spawn_blocking(move || Lake::look(&lake).current()).await.ok().flatten();
    let body = html! {
        @match &manifest {
            None => (layout::nothing(lang.t("Nothing is published yet.", "Nada foi publicado ainda."))),
            Some(manifest) => { (snapshot(manifest, lang, now)) (tables(manifest, lang)) }
        }
        section.card {
            h2 { (lang.t("Drift: what Belvo sent that no schema knows", "Desvio: o que a Belvo enviou e nenhum schema conhece")) }
            @if drift.is_empty() { (layout::nothing(lang.t("Nothing so far.", "Nada até agora."))) }
            dl.rows { @for (name, count) in &drift { div { dt { (drift_name(name, lang)) } dd { (lang.number(*count)) } } } }
        }
        section.card {
            h2 { (lang.t("Dictionary", "Dicionário")) }
            dl.facts { @for (name, meaning) in relations() {
                dt { a href={ "/data/" (escaped(name)) } { (name) } }
                dd lang="en" { (meaning) }
            } }
        }
    };
    Ok(Page { tab: Tab::Data, title: lang.t("Data", "Dados"), live: None, body }.show(&viewer))
}

fn snapshot(manifest: &Manifest, lang: Lang, now: Timestamp) -> Markup {
    let files = manifest.tables.iter().flat_map(|table| &table.files).chain(&manifest.files);
    let (count, bytes) = files.fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.bytes));
    let rows = manifest.rows();
    html! {
        div.card {
            dl.facts {
                dt { "Snapshot" } dd { (manifest.snapshot) ", " (ago_text(lang, Some(&manifest.published_at), now)) }
                dt { (lang.t("Rows", "Linhas")) } dd { (lang.number(rows)) }
                dt { (lang.t("Size", "Tamanho")) } dd { (lang.bytes(bytes)) (lang.t(" in ", " em ")) (lang.count(count, lang.t("file", "arquivo"), lang.t("files", "arquivos"))) }
                dt { (lang.t("Schema version", "Versão do schema")) } dd { (manifest.schema_version) }
                dt { (lang.t("Built by", "Feito por")) } dd { "vinculo " (manifest.vinculo_version) }
            }
        }
    }
}

fn tables(manifest: &Manifest, lang: Lang) -> Markup {
    html! {
        div.table { table {
            caption { (lang.t("Tables", "Tabelas")) }
            thead { tr {
                th { (lang.t("Table", "Tabela")) } th.number { (lang.t("Rows", "Linhas")) } th.number { (lang.t("Parquet", "Parquet")) }
                th.number { (lang.t("Schema", "Schema")) } th { (lang.t("Key", "Chave")) }
            } }
            tbody { @for table in &manifest.tables {
                @let bytes = table.files.iter().map(|file| file.bytes).sum::<u64>();
                tr {
                    td.lead { @if meaning(&table.name).is_some() { a href={ "/data/" (escaped(&table.name)) } { (table.name) } } @else { (table.name) } }
                    td.number data-label=(lang.t("Rows", "Linhas")) { (lang.number(table.rows)) }
                    td.number data-label="Parquet" { (lang.bytes(bytes)) }
                    td.number data-label="Schema" { (table.schema_version) }
                    td data-label=(lang.t("Key", "Chave")) { code { (table.key.join(", ")) } }
                }
            } }
        } }
        div.gap {}
    }
}

fn drift_name(name: &str, lang: Lang) -> String {
    let (resource, kind) = name.rsplit_once(' ').unwrap_or(("", name));
    let kind = match kind {
        "fields" => lang.t("unknown fields", "campos desconhecidos"),
        "values" => lang.t("unknown values", "valores desconhecidos"),
        "rejected" => lang.t("rejected records", "registros rejeitados"),
        other => other,
    };
    format!("{resource}: {kind}")
}

/// Every table and view that has a meaning, in the order of the dictionary.
fn relations() -> impl Iterator<Item = (&'static str, &'static str)> {
    let schema = schema::get();
    let tables = schema.tables.iter().chain(&schema.lake_tables);
    let tables = tables.map(|table| (table.name.as_str(), table.meaning.as_str()));
    tables.chain(dictionary::relations().iter().map(|relation| (relation.name.as_str(), relation.meaning.as_str())))
}

fn meaning(name: &str) -> Option<&'static str> {
    relations().find(|(known, _)| *known == name).map(|(_, meaning)| meaning)
}

/// A column, as the dictionary tells of it.
struct Column {
    name: &'static str,
    kind: &'static str,
    meaning: String,
    null: &'static str,
    sensitivity: &'static str,
}

fn columns(name: &str) -> Vec<Column> {
    let with_unit = |meaning: &str, unit: Option<&str>| match unit {
        Some(unit) => format!("{meaning} [{unit}]"),
        None => meaning.to_owned(),
    };
    let schema = schema::get();
    let tables = schema.tables.iter().chain(&schema.lake_tables).filter(|table| table.name == name);
    let of_records = tables.flat_map(|table| &table.columns).map(|column| Column {
        name: &column.name,
        kind: column.kind.duckdb(),
        meaning: with_unit(&column.meaning, column.unit.as_deref()),
        null: &column.null,
        sensitivity: &column.sensitivity,
    });
    let relations = dictionary::relations().iter().filter(|relation| relation.name == name);
    let of_features = relations.flat_map(|relation| &relation.columns).map(|column| Column {
        name: &column.name,
        kind: &column.kind,
        meaning: with_unit(&column.meaning, column.unit.as_deref()),
        null: &column.null,
        sensitivity: &column.sensitivity,
    });
    of_records.chain(of_features).collect()
}

async fn table(viewer: Viewer, Path(name): Path<String>) -> Result<Markup, Trouble> {
    let lang = viewer.lang;
    let meaning = meaning(&name);
    let meaning = meaning.ok_or_else(|| Trouble::missing("There is no such table.", "Não existe essa tabela."))?;
    let body = html! {
        p lang="en" { (meaning) "." }
        div.table { table lang="en" {
            thead { tr {
                th { (lang.t("Column", "Coluna")) } th { (lang.t("Type", "Tipo")) } th { (lang.t("Meaning", "Significado")) }
                th { (lang.t("NULL when", "NULL quando")) } th { (lang.t("Sensitivity", "Sensibilidade")) }
            } }
            tbody { @for column in columns(&name) {
                tr {
                    td.lead { code { (column.name) } }
                    td data-label=(lang.t("Type", "Tipo")) { code { (column.kind) } }
                    td.long data-label=(lang.t("Meaning", "Significado")) { span { (column.meaning) } }
                    td data-label=(lang.t("NULL when", "NULL quando")) { span { (column.null) } }
                    td data-label=(lang.t("Sensitivity", "Sensibilidade")) { span { (column.sensitivity) } }
                }
            } }
        } }
        div.gap {}
        p { a href="/data" { (lang.t("All data", "Todos os dados")) } }
    };
    Ok(Page { tab: Tab::Data, title: &name, live: None, body }.show(&viewer))
}
