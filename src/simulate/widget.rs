//! A stand-in for the hosted widget: a page whose buttons end at the callback URLs of the token.
//!
//! `GET /widget/?access_token=…` takes the parameters of Belvo's page. Its buttons lead to `/widget/success`, which
//! makes a link for the next person who never had one, or makes the link of the token valid again; to `/widget/exit`,
//! or to `/widget/error`; a script may call those at once. A token is good for one link and ten simulated minutes;
//! later it leads to the callback for errors.

use url::form_urlencoded;

use super::answer::Answer;
use super::links::INSTITUTION;
use super::token::Session;
use super::{Simulation, State};

/// Answers a path below `/widget/`.
pub(super) fn answer(simulation: &Simulation, path: &str, query: &str) -> Answer {
    let asked =
        |name: &str| form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, v)| v.into_owned());
    let token = asked("access_token").unwrap_or_default();
    let (session, now) = {
        let state = simulation.state();
        (state.sessions.get(&token).cloned(), state.world.now)
    };
    let Some(session) = session else {
        // Nobody knows where it should lead.
        return Answer::html(401, "ACCESS_TOKEN_NOT_VALID");
    };
    if !session.is_good(now) {
        return leave_with_error(&session);
    }
    match path {
        "/widget/" => page(query),
        "/widget/success" => match &session.link {
            Some(link) => update(simulation, &token, &session, link),
            None => connect(simulation, &token, &session, asked("access_mode"), asked("external_id")),
        },
        "/widget/exit" => {
            leave_after(&session, "login_error", "Invalid credentials provided to login to the institution")
        }
        "/widget/error" => leave_with_error(&session),
        _ => Answer::html(404, "Not Found"),
    }
}

fn connect(
    simulation: &Simulation,
    token: &str,
    session: &Session,
    access_mode: Option<String>,
    external_id: Option<String>,
) -> Answer {
    let Some(wish) = session.wish(access_mode, external_id) else {
        return leave_after(session, "unexpected_error", "Recurrent links must store the credentials");
    };
    let connected = {
        let State { world, sessions, callbacks, .. } = &mut *simulation.state();
        world.next_person().map(|person| {
            if let Some(session) = sessions.get_mut(token) {
                session.is_used = true;
            }
            let position = world.connect(person, wish);
            let link = world.link(position).id.clone();
            callbacks.made(&link, session.callbacks.clone());
            (position, link)
        })
    };
    let Some((position, link)) = connected else {
        let everybody = [("warning", "institution_disabled"), ("warning_message", "Everybody is connected")];
        return leave(&session.callbacks.event, &everybody);
    };
    simulation.announce_all(position);
    leave(&session.callbacks.success, &[("link", &link), ("institution", INSTITUTION)])
}

/// The link works again, and is read anew.
fn update(simulation: &Simulation, token: &str, session: &Session, link: &str) -> Answer {
    let position = {
        let mut state = simulation.state();
        let Some(position) = state.world.find(link) else {
            drop(state);
            return leave_after(session, "unexpected_error", "The link does not exist");
        };
        if let Some(session) = state.sessions.get_mut(token) {
            session.is_used = true;
        }
        state.world.set_status(position, "valid");
        state.world.collect(position);
        position
    };
    simulation.announce_all(position);
    leave(&session.callbacks.success, &[("link", link), ("institution", INSTITUTION)])
}

fn leave_after(session: &Session, code: &str, message: &str) -> Answer {
    let parameters = [
        ("last_encountered_error_code", code),
        ("last_encountered_error_message", message),
        ("meta_data_step", "abandon-survey"),
        ("meta_data_institution_name", INSTITUTION),
    ];
    leave(&session.callbacks.exit, &parameters)
}

fn leave_with_error(session: &Session) -> Answer {
    let parameters = [("error", "ACCESS_TOKEN_NOT_VALID"), ("error_message", "The token is not valid, or no longer")];
    leave(&session.callbacks.event, &parameters)
}

fn leave(callback: &str, parameters: &[(&str, &str)]) -> Answer {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(parameters);
    let mut answer = Answer::nothing(302);
    let joint = if callback.contains('?') { '&' } else { '?' };
    answer.headers.push(("location", format!("{callback}{joint}{}", query.finish())));
    answer
}

fn page(query: &str) -> Answer {
    // Written anew, so that nothing in the query can be more than text.
    let mut again = form_urlencoded::Serializer::new(String::new());
    again.extend_pairs(form_urlencoded::parse(query.as_bytes()));
    let query = again.finish().replace('&', "&amp;").replace('\'', "&#39;");
    let mut answer = Answer::html(200, "");
    answer.body = format!(
        "<!doctype html>\n<html lang=\"pt\">\n<meta charset=\"utf-8\">\n<title>Widget (simulado)</title>\n\
         <h1>Conecte o seu INSS (simulado)</h1>\n\
         <p>Ninguém aqui existe: cada conexão é a próxima pessoa da simulação.</p>\n<ul>\n\
         <li><a href=\"/widget/success?{query}\">Conectar</a></li>\n\
         <li><a href=\"/widget/exit?{query}\">Sair depois de um erro</a></li>\n\
         <li><a href=\"/widget/error?{query}\">Falhar</a></li>\n</ul>\n</html>\n"
    )
    .into();
    answer
}
