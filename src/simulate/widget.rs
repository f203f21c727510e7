//! A stand-in for the hosted widget: a page whose buttons end at the callback URLs of the token.
//!
//! `GET /widget/?access_token=…` takes the parameters of Belvo's page. Its buttons lead to `/widget/success`, which makes a
//! link for the next person without one, to `/widget/exit`, or to `/widget/error`; a script may call those at once. A token
//! is good for one link.

use url::form_urlencoded;

use super::answer::Answer;
use super::links::{INSTITUTION, Wish};
use super::{Simulation, State};

/// Where the widget leads when it is done.
#[derive(Clone, Debug, Default)]
pub(super) struct Callbacks {
    /// After a link was made.
    pub success: String,
    /// After the user left.
    pub exit: String,
    /// After something went wrong.
    pub event: String,
}

/// Answers a path below `/widget/`.
pub(super) fn answer(simulation: &Simulation, path: &str, query: &str) -> Answer {
    let asked =
        |name: &str| form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, v)| v.into_owned());
    let token = asked("access_token").unwrap_or_default();
    let Some(callbacks) = simulation.state().sessions.get(&token).cloned() else {
        return Answer::html(401, "ACCESS_TOKEN_NOT_VALID");
    };
    match path {
        "/widget/" => page(query),
        "/widget/success" => {
            let wish = Wish { access_mode: asked("access_mode"), external_id: asked("external_id"), ..Wish::default() };
            let Some(link) = connect_next(simulation, &token, wish) else {
                return leave(
                    &callbacks.event,
                    &[("warning", "institution_disabled"), ("warning_message", "Everybody is connected")],
                );
            };
            leave(&callbacks.success, &[("link", &link), ("institution", INSTITUTION)])
        }
        "/widget/exit" => leave(
            &callbacks.exit,
            &[
                ("last_encountered_error_code", "login_error"),
                ("last_encountered_error_message", "Invalid credentials provided to login to the institution"),
                ("meta_data_step", "abandon-survey"),
                ("meta_data_institution_name", INSTITUTION),
            ],
        ),
        "/widget/error" => leave(
            &callbacks.event,
            &[("error", "ACCESS_TOKEN_NOT_VALID"), ("error_message", "The token is not valid, or no longer")],
        ),
        _ => Answer::html(404, "Not Found"),
    }
}

fn connect_next(simulation: &Simulation, token: &str, mut wish: Wish) -> Option<String> {
    let person = {
        let State { world, sessions, .. } = &mut *simulation.state();
        let person = (0..simulation.0.settings.people).find(|person| !world.is_connected(*person))?;
        sessions.remove(token);
        person
    };
    // Without a word the widget makes recurrent links.
    wish.access_mode.get_or_insert_with(|| "recurrent".to_owned());
    let position = simulation.connect_one(person, wish);
    Some(simulation.state().world.link(position).id.clone())
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
