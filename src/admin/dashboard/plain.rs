//! What the pages say of codes, states and reasons, in the language of whoever looks; the words of codes are those of
//! [`crate::words`].

use super::lang::Lang;
use crate::links::view::{Next, State, View};
use crate::links::{self, DELETED, DELETING, INVALID, NOT_FOUND, PAUSED, TOKEN_REQUIRED, UNCONFIRMED, VALID};
use crate::words;

/// What happened, in a few words without a full stop.
pub(super) fn what(code: &str, lang: Lang) -> String {
    match lang {
        Lang::En => words::what(code),
        Lang::Pt => words::portuguese(code).map_or_else(|| words::bare(code), |(what, _)| what.to_owned()),
    }
}

/// What a person does about it, as a sentence.
pub(super) fn advice(code: &str, lang: Lang) -> String {
    sentence(match lang {
        Lang::En => words::advice(code),
        Lang::Pt => words::portuguese(code).map_or("o log diz mais", |(_, advice)| advice),
    })
}

/// With a capital at the start and a full stop at the end.
pub(super) fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().map(|first| first.to_uppercase().collect()).unwrap_or_default();
    let end = if text.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{first}{}{end}", letters.as_str())
}

/// The state of a link as a word, and its tone.
pub(super) fn status(link: &View, lang: Lang) -> (&'static str, &'static str) {
    if link.paused_reason.as_deref() == Some(PAUSED) && !links::is_deleted(link.status.as_deref()) {
        return ("idle", lang.t("paused", "pausado"));
    }
    status_word(link.status.as_deref(), lang)
}

/// A status of Belvo's as a word, and its tone.
pub(super) fn status_word(status: Option<&str>, lang: Lang) -> (&'static str, &'static str) {
    match status {
        Some(VALID) => ("good", lang.t("working", "funcionando")),
        Some(INVALID) => ("warn", lang.t("needs its user", "precisa do usuário")),
        Some(TOKEN_REQUIRED) => ("warn", lang.t("needs a token", "precisa de um token")),
        Some(UNCONFIRMED) => ("warn", lang.t("never confirmed", "não confirmado")),
        Some(DELETING) => ("idle", lang.t("being deleted", "sendo apagado")),
        Some(DELETED) => ("idle", lang.t("deleted", "apagado")),
        Some(NOT_FOUND) => ("bad", lang.t("unknown to Belvo", "desconhecido pela Belvo")),
        Some(_) => ("warn", lang.t("other", "outro")),
        None => ("idle", lang.t("not looked up yet", "ainda não consultado")),
    }
}

/// How a resource of a link stands, as a word and its tone.
pub(super) fn resource_state(state: State, lang: Lang) -> (&'static str, &'static str) {
    match state {
        State::Fetched => ("good", lang.t("fetched", "em dia")),
        State::Running => ("busy", lang.t("being fetched", "sendo buscado")),
        State::Waiting => ("busy", lang.t("waiting its turn", "na fila")),
        State::Retrying => ("warn", lang.t("failed, will retry", "falhou, tentará de novo")),
        State::Blocked => ("bad", lang.t("waits for a person", "espera uma pessoa")),
        State::NeverFetched => ("idle", lang.t("never fetched", "nunca buscado")),
    }
}

/// What a person does next, as a sentence. English is what the API and the commands say.
pub(super) fn what_to_do(next: &Next, lang: Lang) -> String {
    if lang == Lang::En {
        return sentence(&next.to_string());
    }
    let of = |code: &str| format!("({}). {}", what(code, lang), advice(code, lang));
    sentence(match next {
        Next::PausedByOperator => "nada: um operador pausou este link; retome-o quando quiser",
        Next::InvalidCredentials => {
            "as credenciais não servem mais: peça ao usuário que abra o widget em modo de atualização para este link"
        }
        Next::TokenRequired => {
            "a instituição quer um novo token: peça ao usuário que abra o widget em modo de atualização para este link"
        }
        Next::Unconfirmed => "o usuário não terminou de conectar: peça que abra o widget mais uma vez",
        Next::BeingDeleted => "nada: a Belvo está apagando este link; suas linhas ficam",
        Next::Gone => "a Belvo não tem mais este link; suas linhas ficam. Para dados novos, o usuário conecta de novo",
        Next::Paused { reason } => return format!("O link está pausado ({reason}). {}", advice(reason, lang)),
        Next::Blocked { resource, code } => return format!("{resource} está parado {}", of(code)),
        Next::Retrying { resource, code, .. } => {
            return format!("{resource} falhou e será tentado de novo {}", of(code));
        }
        Next::OnItsWay => "nada: uma busca está a caminho",
        Next::NeverFetched => "atualize-o: algo dele nunca foi buscado",
        Next::Nothing => "nada",
    })
}

/// What a kind of run does.
pub(super) fn kind(kind: &str, lang: Lang) -> String {
    match kind {
        "refresh" => lang.t("refresh", "atualização"),
        "recollect" => lang.t("read again at Belvo", "nova leitura na Belvo"),
        "delete" => lang.t("delete at Belvo", "apagar na Belvo"),
        "untrack" => lang.t("end of tracking", "fim do acompanhamento"),
        "erase" => lang.t("erasure", "eliminação"),
        "publish" => lang.t("publish", "publicação"),
        "rebuild" => lang.t("rebuild", "reconstrução"),
        "features" => "features",
        "freeze" => lang.t("features kept for a decision", "features guardadas para uma decisão"),
        "sync-links" => lang.t("compare links", "conferência de links"),
        "replay" => lang.t("replay of webhooks", "reprocessamento de webhooks"),
        "job" => lang.t("job", "tarefa"),
        "fetch" => lang.t("fetch", "busca"),
        "retention" => lang.t("retention", "retenção"),
        "backup" => "backup",
        "verify" => lang.t("verify", "verificação"),
        other => return other.to_owned(),
    }
    .to_owned()
}

/// Why a run began.
pub(super) fn reason(reason: &str, lang: Lang) -> String {
    match reason {
        "api" => lang.t("a person", "uma pessoa"),
        "command" => lang.t("a command", "um comando"),
        "daemon" => lang.t("the daemon itself", "o próprio daemon"),
        "schedule" => lang.t("the schedule", "a agenda"),
        "catch-up" => lang.t("catching up", "recuperação"),
        other => return other.to_owned(),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_a_sentence_in_the_language_of_the_page_also_for_a_code_without_words() {
        assert_eq!(
            advice("rate_limited", Lang::Pt),
            "As chamadas param pelo tempo pedido; reduza belvo.budget se repetir."
        );
        assert_eq!(what("never_heard_of", Lang::En), "never heard of");
        assert_eq!(what("never_heard_of", Lang::Pt), "never heard of");
        assert_eq!(advice("never_heard_of", Lang::En), "The log says more.");
        assert_eq!(advice("never_heard_of", Lang::Pt), "O log diz mais.");
    }
}
