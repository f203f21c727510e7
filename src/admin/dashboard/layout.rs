//! What all pages share: the frame around them, and the small pieces that they repeat.

use std::time::Duration;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::lang::Lang;
use super::session::Viewer;
use super::{escaped, plain};
use crate::clock::Timestamp;
use crate::runs::{Ending, Run};

/// A page of the menu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tab {
    Overview,
    Links,
    Runs,
    Webhooks,
    Schedule,
    Errors,
    Data,
    Developer,
}

impl Tab {
    const ALL: [Self; 8] = [
        Self::Overview,
        Self::Links,
        Self::Runs,
        Self::Webhooks,
        Self::Schedule,
        Self::Errors,
        Self::Data,
        Self::Developer,
    ];

    /// Whether it is in the menu of `viewer`.
    fn is_shown(self, viewer: &Viewer) -> bool {
        self != Self::Developer || viewer.is_simulated
    }

    fn place(self) -> &'static str {
        match self {
            Self::Overview => "/",
            Self::Links => "/links",
            Self::Runs => "/runs",
            Self::Webhooks => "/webhooks",
            Self::Schedule => "/schedule",
            Self::Errors => "/errors",
            Self::Data => "/data",
            Self::Developer => "/developer",
        }
    }

    fn name(self, lang: Lang) -> &'static str {
        match self {
            Self::Overview => lang.t("Overview", "Visão geral"),
            Self::Links => "Links",
            Self::Runs => lang.t("Runs", "Execuções"),
            Self::Webhooks => "Webhooks",
            Self::Schedule => lang.t("Schedule", "Agenda"),
            Self::Errors => lang.t("Errors", "Erros"),
            Self::Data => lang.t("Data", "Dados"),
            Self::Developer => lang.t("Developer", "Desenvolvimento"),
        }
    }
}

/// A whole page.
pub(super) struct Page<'p> {
    pub(super) tab: Tab,
    pub(super) title: &'p str,
    /// The page shows itself anew after so long.
    pub(super) live: Option<Duration>,
    pub(super) body: Markup,
}

impl Page<'_> {
    /// The page as `viewer` sees it.
    pub(super) fn show(&self, viewer: &Viewer) -> Markup {
        let (lang, other) = (viewer.lang, viewer.lang.other());
        let seconds = self.live.map(|live| live.as_secs().max(1));
        let framed = html! {
            a.skip href="#main" { (lang.t("Skip to the content", "Pular para o conteúdo")) }
            header {
                a.brand href="/" { (mark()) "vinculo" }
                nav aria-label=(lang.t("Pages", "Páginas")) {
                    @for tab in Tab::ALL.into_iter().filter(|tab| tab.is_shown(viewer)) {
                        a href=(tab.place()) aria-current=[(tab == self.tab).then_some("page")] { (tab.name(lang)) }
                    }
                }
                div.who {
                    a href={ "/language/" (other.tag()) "?back=" (escaped(&viewer.place)) } lang=(other.html()) {
                        (other.t("English", "Português"))
                    }
                    form method="post" action="/sign-out" {
                        (signature(viewer))
                        button.plain type="submit" { (lang.t("Sign out", "Sair")) }
                    }
                    @if !viewer.may_operate() {
                        span.badge { (lang.t("read only", "somente leitura")) }
                    }
                }
            }
            main #main tabindex="-1" data-live=[seconds] {
                h1 { (self.title) }
                (self.body)
            }
        };
        let noscript =
            html! { @if let Some(seconds) = seconds { noscript { meta http-equiv="refresh" content=(seconds); } } };
        document(lang, self.title, &noscript, &framed)
    }
}

/// A page without the menu, for those who are not signed in and for what went wrong.
pub(super) fn bare(lang: Lang, title: &str, body: &Markup) -> Markup {
    let framed = html! {
        main.bare #main {
            p.brand { (mark()) "vinculo" }
            h1 { (title) }
            (body)
        }
    };
    document(lang, title, &html! {}, &framed)
}

fn document(lang: Lang, title: &str, head: &Markup, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang=(lang.html()) {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) " · vinculo" }
                link rel="icon" href="/assets/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/assets/style.css";
                script src="/assets/live.js" defer {}
                (head)
            }
            body { (body) }
        }
    }
}

/// Two rings that hold each other.
fn mark() -> Markup {
    PreEscaped(
        r#"<svg class="mark" viewBox="0 0 28 18" aria-hidden="true"><circle cx="9.5" cy="9" r="6.5"/><circle cx="18.5" cy="9" r="6.5"/></svg>"#
            .to_owned(),
    )
}

/// The field by which a form is known to be ours.
pub(super) fn signature(viewer: &Viewer) -> Markup {
    html! { input type="hidden" name="signature" value=(viewer.signature); }
}

/// A form with nothing but a button, for those who may press it.
pub(super) fn button(viewer: &Viewer, action: &str, label: &str) -> Markup {
    html! {
        @if viewer.may_operate() {
            form.inline method="post" action=(action) {
                (signature(viewer))
                button type="submit" { (label) }
            }
        }
    }
}

/// An instant as people say it; the exact one is told to who points at it.
pub(super) fn ago(lang: Lang, at: Timestamp, now: Timestamp) -> Markup {
    let utc = at.to_utc();
    html! {
        time datetime=(at) title=(utc.format("%Y-%m-%d %H:%M:%S UTC")) { (lang.relative(at, now)) }
    }
}

/// The same of an instant in RFC 3339; a dash when there is none.
pub(super) fn ago_text(lang: Lang, at: Option<&str>, now: Timestamp) -> Markup {
    at.and_then(Timestamp::parse).map_or_else(|| html! { span.quiet { "–" } }, |at| ago(lang, at, now))
}

/// The page of a run.
pub(super) fn run_place(id: &str) -> String {
    format!("/runs/{}", escaped(id))
}

/// A stable code in plain words, with the code beside it.
pub(super) fn code(lang: Lang, code: &str) -> Markup {
    html! { (plain::what(code, lang)) " " code { (code) } }
}

/// How a run ended, as a word in its colour.
pub(super) fn outcome(lang: Lang, run: &Run) -> Markup {
    let word = match run.ending() {
        None => lang.t("running", "em andamento"),
        Some(Ending::Done) => lang.t("done", "concluída"),
        Some(Ending::Partly) => lang.t("partly done", "em parte"),
        Some(Ending::Skipped) => lang.t("skipped", "pulada"),
        Some(Ending::Interrupted) => lang.t("interrupted", "interrompida"),
        Some(Ending::Failed | Ending::Code(_)) => lang.t("failed", "falhou"),
    };
    badge(tone(run), word)
}

/// The tone of how a run ended.
pub(super) fn tone(run: &Run) -> &'static str {
    match run.ending() {
        None => "busy",
        Some(Ending::Done) => "good",
        Some(Ending::Partly | Ending::Interrupted) => "warn",
        Some(Ending::Skipped) => "idle",
        Some(Ending::Failed | Ending::Code(_)) => "bad",
    }
}

/// A word in the colour of its tone: `good`, `warn`, `bad`, `busy` or `idle`.
pub(super) fn badge(tone: &str, word: &str) -> Markup {
    html! { span class={ "badge " (tone) } { (word) } }
}

/// Where there is nothing.
pub(super) fn nothing(text: &str) -> Markup {
    html! { p.empty { (text) } }
}

/// The way to the next page of a list, and back to its start.
pub(super) fn pager(lang: Lang, base: &str, is_later: bool, next: Option<&str>) -> Markup {
    let join = if base.contains('?') { '&' } else { '?' };
    html! {
        @if is_later || next.is_some() {
            nav.pager aria-label=(lang.t("Pages of this list", "Páginas desta lista")) {
                @if is_later { a href=(base) { (lang.t("Newest first page", "Primeira página")) } }
                @if let Some(next) = next { a rel="next" href={ (base) (join) "after=" (escaped(next)) } { (lang.t("More", "Mais")) } }
            }
        }
    }
}
