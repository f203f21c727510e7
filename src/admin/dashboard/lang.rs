//! The two languages of the pages, and how each writes numbers, ages and sizes.
//!
//! A text stands in both languages where it is used, side by side, so that neither is forgotten.

use std::time::Duration;

use axum::http::{HeaderMap, header};

use super::session;
use crate::clock::Timestamp;

/// The name of the cookie that remembers the choice.
pub(super) const COOKIE: &str = "vinculo_language";

/// A language of the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lang {
    /// English.
    En,
    /// Portuguese, as in Brazil.
    Pt,
}

impl Lang {
    /// The language that was chosen, else the one that the browser prefers.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        session::cookie(headers, COOKIE).as_deref().and_then(Self::parse).unwrap_or_else(|| Self::preferred(headers))
    }

    /// `en` or `pt`.
    pub(super) fn parse(tag: &str) -> Option<Self> {
        match tag {
            "en" => Some(Self::En),
            "pt" => Some(Self::Pt),
            _ => None,
        }
    }

    fn preferred(headers: &HeaderMap) -> Self {
        let accepted = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let mut best = (Self::En, 0.0);
        for range in accepted.split(',') {
            let (tag, weight) = range.split_once(";q=").unwrap_or((range, "1"));
            let primary = tag.trim().split('-').next().unwrap_or_default().to_ascii_lowercase();
            let weight: f32 = weight.trim().parse().unwrap_or(0.0);
            if let Some(lang) = Self::parse(&primary)
                && weight > best.1
            {
                best = (lang, weight);
            }
        }
        best.0
    }

    /// The short tag, as in the address of the switch.
    pub(super) fn tag(self) -> &'static str {
        self.t("en", "pt")
    }

    /// The tag for the attribute `lang`.
    pub(super) fn html(self) -> &'static str {
        self.t("en", "pt-BR")
    }

    /// The other one.
    pub(super) fn other(self) -> Self {
        match self {
            Self::En => Self::Pt,
            Self::Pt => Self::En,
        }
    }

    /// The text in this language.
    pub(super) fn t<T>(self, en: T, pt: T) -> T {
        match self {
            Self::En => en,
            Self::Pt => pt,
        }
    }

    /// `12,345` or `12.345`.
    pub(super) fn number(self, number: u64) -> String {
        let grouped = crate::admin::status::grouped(number);
        self.t(grouped.clone(), grouped.replace(',', "."))
    }

    /// `1 link`, `2 links`: the number with the word that fits it.
    pub(super) fn count(self, number: u64, one: &str, many: &str) -> String {
        format!("{} {}", self.number(number), if number == 1 { one } else { many })
    }

    /// A share in whole percent. What is not all is never shown as all, nor what is something as nothing.
    pub(super) fn percent(part: u64, whole: u64) -> String {
        if whole == 0 {
            return "–".to_owned();
        }
        let rounded = (u128::from(part) * 200 / u128::from(whole)).div_ceil(2);
        let shown = match (part, rounded) {
            (0, _) => 0,
            (part, 100..) if part < whole => 99,
            (_, rounded) => rounded.clamp(1, 100),
        };
        format!("{shown}\u{202f}%")
    }

    /// A length of time in its largest unit: `12 s`, `3 min`, `5 h`, `2 d`.
    pub(super) fn span(self, length: Duration) -> String {
        let seconds = length.as_secs();
        match seconds {
            0 if length.is_zero() => "0 s".to_owned(),
            0 => format!("{} ms", length.as_millis().max(1)),
            1..120 => format!("{seconds} s"),
            120..7200 => format!("{} min", seconds / 60),
            7200..172_800 => format!("{} h", seconds / 3600),
            _ => format!("{} d", self.number(seconds / 86_400)),
        }
    }

    /// `3 min ago` or `in 3 min`.
    pub(super) fn relative(self, at: Timestamp, now: Timestamp) -> String {
        if at > now {
            let span = self.span(at.since(now));
            return self.t(format!("in {span}"), format!("em {span}"));
        }
        let since = now.since(at);
        if since < Duration::from_secs(5) {
            return self.t("just now", "agora").to_owned();
        }
        let span = self.span(since);
        self.t(format!("{span} ago"), format!("há {span}"))
    }

    /// `4.2 MB` or `4,2 MB`.
    pub(super) fn bytes(self, bytes: u64) -> String {
        let text = bytesize::ByteSize(bytes).display().si().to_string();
        self.t(text.clone(), text.replace('.', ","))
    }

    /// A sum of something that ends in `s`, with a decimal point or comma.
    pub(super) fn seconds(self, millis: u64) -> String {
        if millis >= 120_000 {
            return self.span(Duration::from_millis(millis));
        }
        let text = format!("{}.{} s", millis / 1000, millis % 1000 / 100);
        self.t(text.clone(), text.replace('.', ","))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_browser_chooses_the_language_until_a_person_does() {
        let headers = |accepted: &'static str, cookie: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_LANGUAGE, HeaderValue::from_static(accepted));
            headers.insert(header::COOKIE, HeaderValue::from_static(cookie));
            headers
        };
        for (accepted, cookie, expected) in [
            ("pt-BR,pt;q=0.9,en;q=0.8", "", Lang::Pt),
            ("en-US,en;q=0.9,pt;q=0.8", "", Lang::En),
            ("de, fr;q=0.7", "", Lang::En),
            ("de, pt;q=0.7, en;q=0.2", "", Lang::Pt),
            ("pt-BR", "a=b; vinculo_language=en", Lang::En),
            ("en", "vinculo_language=xx", Lang::En),
        ] {
            assert_eq!(Lang::of(&headers(accepted, cookie)), expected, "{accepted} {cookie}");
        }
    }

    #[test]
    fn numbers_ages_and_shares_read_as_each_language_writes_them() {
        assert_eq!((Lang::En.number(12_345), Lang::Pt.number(12_345)), ("12,345".to_owned(), "12.345".to_owned()));
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        assert_eq!(Lang::En.relative(at(0), at(180)), "3 min ago");
        assert_eq!(Lang::Pt.relative(at(0), at(180)), "há 3 min");
        assert_eq!(Lang::En.relative(at(10_800), at(0)), "in 3 h");
        let shares = [(0, 10), (1, 1000), (999, 1000), (10, 10), (1, 2), (0, 0)].map(|(a, b)| Lang::percent(a, b));
        assert_eq!(shares, ["0\u{202f}%", "1\u{202f}%", "99\u{202f}%", "100\u{202f}%", "50\u{202f}%", "–"]);
        assert_eq!((Lang::En.seconds(1234), Lang::Pt.seconds(1234)), ("1.2 s".to_owned(), "1,2 s".to_owned()));
    }
}
