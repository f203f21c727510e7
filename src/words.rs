//! Stable codes in plain words, in English and Portuguese: what happened, and what a person does about it.
//!
//! *Takes* a code of any part, as `status`, runs, links and problems name it. *Gives* the same words to the commands,
//! the API and the dashboard. *Promises* to promise nothing of a code without words: the log says more of it. *Not
//! here*: what is told of states, reasons and kinds of runs, which the pages and commands say themselves.

use crate::belvo::Code;

/// What a code means: English for what [`Code`] does not know, then Portuguese, each as what happened and what
/// to do next.
struct Words {
    code: &'static str,
    en: Option<(&'static str, &'static str)>,
    pt: (&'static str, &'static str),
}

const fn of_belvo(code: &'static str, what: &'static str, advice: &'static str) -> Words {
    Words { code, en: None, pt: (what, advice) }
}

const fn of_ours(
    code: &'static str,
    what: &'static str,
    advice: &'static str,
    pt_what: &'static str,
    pt_advice: &'static str,
) -> Words {
    Words { code, en: Some((what, advice)), pt: (pt_what, pt_advice) }
}

static WORDS: &[Words] = &[
    of_belvo(
        "api_auth",
        "a Belvo recusa as chaves",
        "confira belvo.secret_id, belvo.secret_password e se são do belvo.base_url",
    ),
    of_belvo(
        "api_forbidden",
        "a Belvo proíbe esta chamada à conta",
        "peça à Belvo que habilite o recurso; é pedido de novo por si só",
    ),
    of_belvo("institution_refuses", "a instituição recusa a Belvo", "é tentado de novo em alguns minutos"),
    of_belvo(
        "institution_down",
        "a instituição está fora do ar",
        "veja a página de status da Belvo; é tentado de novo em alguns minutos",
    ),
    of_belvo("link_cooling", "o link foi atualizado há minutos", "é tentado de novo em alguns minutos"),
    of_belvo(
        "api_blocked",
        "a Belvo recusa este endereço ou esta conta por ora",
        "as chamadas param e voltam mais devagar; reduza belvo.budget se repetir e pergunte à Belvo se ficar",
    ),
    of_belvo(
        "rate_limited",
        "a Belvo pede paciência",
        "as chamadas param pelo tempo pedido; reduza belvo.budget se repetir",
    ),
    of_belvo(
        "link_needs_user",
        "o link precisa do seu usuário",
        "peça ao usuário que abra o widget em modo de atualização",
    ),
    of_belvo("link_expired", "as credenciais do link expiraram na Belvo", "peça ao usuário que conecte de novo"),
    of_belvo(
        "link_deleted",
        "o link foi apagado na Belvo",
        "suas linhas ficam; para dados novos, o usuário conecta de novo",
    ),
    of_belvo(
        "resource_refused",
        "a instituição não oferece este recurso para o link",
        "tire-o de fetch_resources do link",
    ),
    of_belvo(
        "not_found",
        "a Belvo não o conhece",
        "é perguntado de novo antes de algo terminar; se ficar assim, o usuário conecta de novo",
    ),
    of_belvo(
        "simulated_mismatch",
        "uma Belvo simulada e uma real não dividem um estado",
        "confira belvo.base_url, ou use outro estado e outro lake; nada da resposta foi guardado",
    ),
    of_belvo("bad_request", "a Belvo acha o pedido errado", "relate isto com o request id da Belvo"),
    of_belvo("api_down", "a Belvo falhou", "é tentado de novo; se ficar assim, relate o request id da Belvo"),
    of_belvo("api_timeout", "a Belvo demorou demais", "é tentado de novo automaticamente"),
    of_belvo("unexpected_status", "uma resposta que não é lista", "confira belvo.base_url; é tentado de novo"),
    of_belvo(
        "redirected",
        "a resposta leva a outro lugar e não é seguida",
        "confira belvo.base_url; é tentado de novo",
    ),
    of_belvo("unreachable", "sem conexão", "confira belvo.base_url, DNS e a rede; é tentado de novo"),
    of_belvo(
        "tls_refused",
        "o certificado do servidor não é confiável; nada foi enviado",
        "confira belvo.base_url e ca-certificates",
    ),
    of_belvo("timeout", "sem resposta a tempo", "é tentado de novo; veja belvo.idle_timeout e belvo.total_timeout"),
    of_belvo("truncated", "a resposta veio cortada e foi descartada", "é tentado de novo automaticamente"),
    of_belvo(
        "too_large",
        "a resposta é maior que belvo.max_body",
        "aumente belvo.max_body ou reduza belvo.page_size e atualize o link",
    ),
    of_belvo("not_json", "a resposta não é JSON", "confira belvo.base_url; é tentado de novo"),
    of_belvo("not_a_list", "a resposta não tem lista de resultados", "confira belvo.base_url; é tentado de novo"),
    of_belvo(
        "foreign_next",
        "a próxima página está em outro servidor e não é seguida",
        "confira belvo.base_url; é tentado de novo",
    ),
    of_belvo("inconsistent_pages", "as páginas não formam uma lista", "é tentado de novo automaticamente"),
    of_ours(
        "paused_by_operator",
        "an operator paused the link",
        "press Resume on its page of the dashboard when it may be asked for again",
        "um operador pausou o link",
        "aperte Retomar na página dele no painel quando puder ser consultado de novo",
    ),
    of_ours(
        "interrupted",
        "it was cut off by the end of the program",
        "order it again if it still matters",
        "foi cortada pelo fim do programa",
        "ordene de novo se ainda importa",
    ),
    of_ours(
        "panicked",
        "the work ended unexpectedly",
        "please report it, with the log around that time",
        "o trabalho terminou de forma inesperada",
        "relate isto, com o log daquele momento",
    ),
    of_ours("stopping", "the daemon was stopping", "order it again", "o daemon estava parando", "ordene de novo"),
    of_ours(
        "failed",
        "nothing of it was done",
        "look at the failures of the run",
        "nada foi feito",
        "veja as falhas da execução",
    ),
    of_ours(
        "partly",
        "a part of it failed",
        "look at the failures of the run",
        "uma parte falhou",
        "veja as falhas da execução",
    ),
    of_ours(
        "incomplete",
        "a list is empty of which a webhook counted records",
        "it is asked for again by itself, and believed when it stays empty; the rows stay until then",
        "uma lista veio vazia, e um webhook contou registros dela",
        "é consultada de novo automaticamente e aceita se continuar vazia; até lá as linhas ficam",
    ),
    of_ours(
        "quarantined",
        "the webhook is still not understood",
        "upgrade the program, then replay it",
        "o webhook ainda não é entendido",
        "atualize o programa e reprocesse",
    ),
    of_ours(
        "nothing_read",
        "Belvo read nothing new in time",
        "look at the link, and ask again later",
        "a Belvo não leu nada novo a tempo",
        "veja o link e peça de novo mais tarde",
    ),
    of_ours(
        "link_unfit",
        "the link cannot be read again",
        "look at what the link waits for",
        "o link não pode ser lido de novo",
        "veja o que o link espera",
    ),
    of_ours(
        "foreign_record",
        "Belvo sent a record of another link",
        "nothing of it is published; report it to Belvo with the request id",
        "a Belvo enviou um registro de outro link",
        "nada dele é publicado; relate à Belvo com o request id",
    ),
    of_ours(
        "disk_full",
        "the disk is full",
        "make room; it goes on by itself",
        "o disco está cheio",
        "libere espaço; continua automaticamente",
    ),
    of_ours(
        "lake_not_writable",
        "the lake cannot be written",
        "give the daemon's user the right to write there",
        "o lake não pode ser gravado",
        "dê ao usuário do daemon o direito de gravar lá",
    ),
    of_ours(
        "lake_missing",
        "the folder of the lake is empty",
        "mount its volume, or run vinculo rebuild if it was removed on purpose",
        "a pasta do lake está vazia",
        "monte o volume dele ou execute vinculo rebuild se ele foi removido de propósito",
    ),
    of_ours(
        "state_not_writable",
        "the state takes no writes",
        "look at the disk and the log; webhooks are answered with 503 meanwhile",
        "o estado não aceita gravações",
        "veja o disco e o log; webhooks recebem 503 enquanto isso",
    ),
    of_ours(
        "state_read_only",
        "the state can only be read",
        "give the daemon's user the right to write there; webhooks are answered with 503 meanwhile",
        "o estado só pode ser lido",
        "dê ao usuário do daemon o direito de gravar lá; webhooks recebem 503 enquanto isso",
    ),
    of_ours(
        "state_io",
        "the disk of the state fails",
        "look at the disk; webhooks are answered with 503 meanwhile",
        "o disco do estado falha",
        "veja o disco; webhooks recebem 503 enquanto isso",
    ),
    of_ours(
        "state_damaged",
        "the state is damaged",
        "run vinculo verify, then restore a backup",
        "o estado está danificado",
        "execute vinculo verify e depois restaure um backup",
    ),
    of_ours(
        "state_closed",
        "the state is closed",
        "start the daemon anew, which loses nothing, and report this",
        "o estado está fechado",
        "reinicie o daemon, o que não perde nada, e relate isso",
    ),
    of_ours(
        "publish_failed",
        "nothing can be published",
        "look at the log; readers see the last snapshot",
        "nada pode ser publicado",
        "veja o log; leitores veem o último snapshot",
    ),
    of_ours(
        "task_ended",
        "a task of the daemon has ended",
        "start the daemon anew, which loses nothing, and report this with the log",
        "uma tarefa do daemon terminou",
        "reinicie o daemon, o que não perde nada, e relate isso com o log",
    ),
    of_ours(
        "backup_not_writable",
        "the backup could not be written",
        "look at the folder backups beside the state, then order it again",
        "o backup não pôde ser gravado",
        "veja a pasta backups ao lado do estado e ordene de novo",
    ),
    of_ours(
        "backup_exists",
        "there is a backup of that name",
        "order it again",
        "já existe um backup com esse nome",
        "ordene de novo",
    ),
    of_ours(
        "delete_refused",
        "Belvo refuses to delete the link",
        "look at the message of the run, then order it again",
        "a Belvo recusa apagar o link",
        "veja a mensagem da execução e ordene de novo",
    ),
    of_ours(
        "receipt_not_writable",
        "the receipt cannot be written",
        "give the daemon's user the right to write beside the state; it is tried again by itself",
        "o recibo não pode ser gravado",
        "dê ao usuário do daemon o direito de gravar ao lado do estado; é tentado de novo automaticamente",
    ),
    of_ours(
        "tombstones_not_usable",
        "the tombstones beside the state cannot be used",
        "give the daemon's user the right to write there",
        "os tombstones ao lado do estado não podem ser usados",
        "dê ao usuário do daemon o direito de gravar lá",
    ),
    of_ours(
        "tombstones_damaged",
        "the tombstones beside the state are damaged",
        "put a copy of the file back",
        "os tombstones ao lado do estado estão danificados",
        "coloque de volta uma cópia do arquivo",
    ),
    of_ours(
        "foreign_tombstones",
        "the tombstones beside the state are of another state",
        "give this state a folder of its own",
        "os tombstones ao lado do estado são de outro estado",
        "dê a este estado uma pasta própria",
    ),
    of_ours(
        "link_erased",
        "the link was erased",
        "let the user connect again, as a new link",
        "o link foi eliminado",
        "o usuário pode conectar de novo, como um link novo",
    ),
    of_ours(
        "no_such_webhook",
        "the webhook is not in the log any more",
        "nothing is lost: what it told was done",
        "o webhook não está mais no log",
        "nada se perdeu: o que ele dizia foi feito",
    ),
    of_ours(
        "needs_belvo",
        "Belvo was to be asked and is not configured",
        "set belvo.secret_id and belvo.secret_password, then order it again",
        "a Belvo devia ser consultada e não está configurada",
        "defina belvo.secret_id e belvo.secret_password e ordene de novo",
    ),
    of_ours(
        "state_unreadable",
        "the state holds something that cannot be read",
        "run vinculo verify, then restore a backup",
        "o estado contém algo que não pode ser lido",
        "execute vinculo verify e depois restaure um backup",
    ),
    of_ours(
        "state_busy",
        "the state was busy for too long",
        "order it again; look at the disk if it stays",
        "o estado esteve ocupado por tempo demais",
        "ordene de novo; veja o disco se continuar",
    ),
    of_ours(
        "no_thread",
        "the system gives no more threads",
        "raise ulimit -u, or TasksMax of the service",
        "o sistema não dá mais threads",
        "aumente ulimit -u ou TasksMax do serviço",
    ),
    of_ours(
        "erasure_unfinished",
        "an erasure is not finished",
        "look at the log for what stands in its way; it is tried again by itself",
        "uma eliminação não foi concluída",
        "veja no log o que a impede; é tentada de novo automaticamente",
    ),
    of_ours(
        "sink_failed",
        "a file of the lake could not be written",
        "look at the log; readers see the last snapshot",
        "um arquivo do lake não pôde ser gravado",
        "veja o log; leitores veem o último snapshot",
    ),
    of_ours(
        "foreign_lake",
        "the lake was published from another state",
        "put that state back, or run vinculo rebuild",
        "o lake foi publicado a partir de outro estado",
        "coloque aquele estado de volta ou execute vinculo rebuild",
    ),
    of_ours(
        "state_older_than_lake",
        "the lake is newer than the state",
        "restore the newer state, or run vinculo rebuild",
        "o lake é mais novo que o estado",
        "restaure o estado mais novo ou execute vinculo rebuild",
    ),
    of_ours(
        "damaged",
        "files are damaged",
        "run vinculo verify, which names them, then vinculo rebuild",
        "há arquivos danificados",
        "execute vinculo verify, que os nomeia, e depois vinculo rebuild",
    ),
    of_ours(
        "verify_failed",
        "the files could not be checked",
        "look at the log",
        "os arquivos não puderam ser conferidos",
        "veja o log",
    ),
    of_ours(
        "features_refused",
        "the features of that date cannot be computed",
        "look at the message of the run",
        "as features dessa data não podem ser calculadas",
        "veja a mensagem da execução",
    ),
    of_ours(
        "starting",
        "the lake is being brought up to date after the start",
        "wait a moment",
        "o lake está sendo atualizado após o início",
        "espere um momento",
    ),
    of_ours(
        "state_locked",
        "another program has the state locked",
        "find out what else opened the state file",
        "outro programa bloqueia o estado",
        "descubra o que mais abriu o arquivo de estado",
    ),
    of_ours(
        "state_slow",
        "the state takes too long to write",
        "look at the disk; webhooks are answered with 503 meanwhile",
        "o estado demora demais para gravar",
        "veja o disco; webhooks recebem 503 enquanto isso",
    ),
    of_ours(
        "overloaded",
        "more is to be written than the state can take",
        "look at the disk and at who sends so many webhooks; they are answered with 503 meanwhile",
        "há mais para gravar do que o estado aguenta",
        "veja o disco e quem envia tantos webhooks; eles recebem 503 enquanto isso",
    ),
    of_ours(
        "state_failed",
        "the state failed at a write",
        "look at the log, and report it",
        "o estado falhou em uma gravação",
        "veja o log e relate isso",
    ),
    of_ours(
        "overtaken",
        "another worker took over what was to be written",
        "nothing is lost: whoever took it over goes on with it",
        "outro trabalhador assumiu o que ia ser gravado",
        "nada se perdeu: quem assumiu continua",
    ),
    of_ours(
        "state_key_missing",
        "the state is encrypted, and there is no key",
        "write the key that the state was made with into state.encryption_key",
        "o estado está cifrado e não há chave",
        "escreva em state.encryption_key a chave com que o estado foi feito",
    ),
    of_ours(
        "state_key_wrong",
        "the key is not that of the state",
        "write the right one into state.encryption_key, and while you replace it the old one into state.encryption_key_previous",
        "a chave não é a do estado",
        "escreva a certa em state.encryption_key e, enquanto a troca, a antiga em state.encryption_key_previous",
    ),
    of_ours(
        "erased_before",
        "everything of the link's user was erased, and the link is older than that",
        "it is erased by itself; for a new consent, let the user connect again",
        "tudo do usuário deste link foi eliminado, e o link é mais antigo",
        "é eliminado automaticamente; para um novo consentimento, o usuário conecta de novo",
    ),
];

/// What happened, and what a person does about it, in English; `None` for a code without words.
pub fn english(code: &str) -> Option<(&'static str, &'static str)> {
    let ours = find(code).and_then(|words| words.en);
    ours.or_else(|| Code::by_name(code).map(|code| (code.what(), code.advice())))
}

/// The same in Portuguese.
pub fn portuguese(code: &str) -> Option<(&'static str, &'static str)> {
    find(code).map(|words| words.pt)
}

/// What happened, in English, a few words without a full stop; the code's own when there are no others.
pub fn what(code: &str) -> String {
    english(code).map_or_else(|| bare(code), |(what, _)| what.to_owned())
}

/// What a person does about it, in English; where the log is when nothing is known.
pub fn advice(code: &str) -> &'static str {
    english(code).map_or("the log says more", |(_, advice)| advice)
}

/// The words that a code itself is made of.
pub fn bare(code: &str) -> String {
    code.replace('_', " ")
}

fn find(code: &str) -> Option<&'static Words> {
    // The state and the worker call it so, and runs by the other name: both are on record.
    let code = if code == "panic" { "panicked" } else { code };
    WORDS.iter().find(|words| words.code == code)
}

#[cfg(test)]
mod tests {
    use std::io;

    use rusqlite::ffi;

    use super::*;
    use crate::problems::Problems;
    use crate::{erase, links, publish, store, vitals};

    #[test]
    fn every_code_of_belvo_has_words_in_both_languages() {
        for code in Code::ALL.iter().map(|code| code.name()) {
            assert!(find(code).is_some_and(|words| words.en.is_none()), "{code} has no Portuguese");
        }
        for words in WORDS {
            assert!(english(words.code).is_some(), "{} has no English", words.code);
        }
    }

    #[test]
    fn whatever_stands_in_the_way_has_words_and_no_code_has_them_twice() {
        let problems = Problems::default();
        // The first is private to where it is raised; what Belvo's client is in trouble with is a code of Belvo.
        for code in
            ["starting", publish::LAKE_MISSING, publish::PUBLISH_FAILED, erase::ERASURE_UNFINISHED, vitals::TASK_ENDED]
        {
            problems.raise(code);
        }
        let mut standing = problems.standing();
        for code in refusals_of_the_state() {
            problems.hear_of_state(Some(code), || None);
            standing.extend(problems.standing());
        }
        for code in standing {
            assert!(find(code).is_some(), "{code} stands in the way, and nobody says what it means");
        }
        for words in WORDS {
            assert_eq!(WORDS.iter().filter(|other| other.code == words.code).count(), 1, "{}", words.code);
        }
    }

    /// The codes with which the state may refuse a write, and the webhook's when it takes too long.
    fn refusals_of_the_state() -> Vec<&'static str> {
        use store::Error::{
            Busy, Closed, Database, KeyMissing, KeyWrong, NotEncrypted, Overloaded, Overtaken, Panicked, Thread,
            Unreadable,
        };
        let of_database = [
            ffi::SQLITE_BUSY,
            ffi::SQLITE_FULL,
            ffi::SQLITE_READONLY,
            ffi::SQLITE_IOERR,
            ffi::SQLITE_CORRUPT,
            ffi::SQLITE_ERROR,
        ]
        .map(|code| Database(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)));
        let own = [
            Busy,
            Closed,
            KeyMissing,
            KeyWrong,
            NotEncrypted,
            Overloaded,
            Overtaken("a link"),
            Panicked,
            Thread(io::Error::other("no more")),
            Unreadable("a body"),
        ];
        own.iter().chain(&of_database).map(store::Error::code).chain(["state_slow"]).collect()
    }

    #[test]
    fn why_a_link_waits_has_words_whatever_the_reason_is() {
        for reason in links::SILENT {
            assert!(find(reason).is_some(), "{reason}");
        }
        assert!(advice("erased_before").contains("erased by itself"), "{}", advice("erased_before"));
    }

    #[test]
    fn one_thing_under_two_names_is_told_alike() {
        assert!(english("panicked").is_some());
        assert_eq!((english("panic"), portuguese("panic")), (english("panicked"), portuguese("panicked")));
    }

    #[test]
    fn nothing_is_promised_of_a_code_that_nobody_knows() {
        assert_eq!(
            (what("never_heard_of").as_str(), advice("never_heard_of")),
            ("never heard of", "the log says more")
        );
        assert_eq!(portuguese("never_heard_of"), None);
    }
}
