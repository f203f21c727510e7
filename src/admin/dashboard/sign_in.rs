//! `GET /sign-in`, `POST /sign-in`, `POST /sign-out`, `GET /language/{tag}`: who looks, and in which language.

use std::net::SocketAddr;
use std::time::Instant;

use axum::Router;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use maud::{Markup, html};

use super::lang::{self, Lang};
use super::session::{Signed, form};
use super::{Board, Trouble, escaped, layout, own_place, query};
use crate::admin::role::Caller;
use crate::audit;
use crate::operations::Operations;

pub(super) fn routes() -> Router<Board> {
    Router::new()
        .route("/sign-in", get(show).post(sign_in))
        .route("/sign-out", post(sign_out))
        .route("/language/{tag}", get(choose_language))
}

async fn show(State(board): State<Board>, headers: HeaderMap, uri: Uri) -> Markup {
    let next = query(&uri).remove("next").unwrap_or_default();
    page(Lang::of(&headers), own_place(&next), false, board.tokens.is_empty())
}

async fn sign_in(
    State(board): State<Board>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Result<Response, Response> {
    let headers = request.headers().clone();
    if let Some(wait) = board.guesses.wait(peer.ip(), Instant::now()) {
        ::metrics::counter!("vinculo_admin_refused_total").increment(1);
        let seconds = wait.as_secs() + 1;
        let trouble = Trouble::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!("Too many wrong tokens came from this address. Try again in {seconds} s."),
            format!("Muitos tokens errados vieram deste endereço. Tente de novo em {seconds} s."),
        );
        return Err(trouble.into_response());
    }
    let fields = form(request).await?;
    let field = |name: &str| fields.get(name).map_or("", |value| value.trim());
    let next = own_place(field("next"));
    let Some(caller) = board.recognise(field("token").as_bytes(), peer).await else {
        ::metrics::counter!("vinculo_admin_refused_total").increment(1);
        tracing::warn!(code = "unauthorized", "somebody tried to sign in with a wrong token");
        let page = page(Lang::of(&headers), next, true, board.tokens.is_empty());
        return Ok((StatusCode::UNAUTHORIZED, page).into_response());
    };
    tracing::info!(caller = %caller.name, role = %caller.role, "somebody signed in to the dashboard");
    let is_https = headers.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https");
    let cookie = board.sessions.begin(field("token").as_bytes(), is_https);
    Ok((AppendHeaders([(header::SET_COOKIE, cookie)]), Redirect::to(next)).into_response())
}

impl Board {
    /// Whose token it is; one that is nobody's is a guess that is counted.
    async fn recognise(&self, token: &[u8], peer: SocketAddr) -> Option<Caller> {
        let caller = self.tokens.recognise(token);
        if caller.is_none() && self.guesses.note_new(peer.ip(), token, Instant::now()) {
            let Operations { store, clock, .. } = &self.operations;
            audit::note_failed_sign_in(store, clock.now(), "dashboard").await;
        }
        caller
    }

    /// Whose token a request without a session carries, unless too many wrong ones came from its address. A proxy may
    /// send one of its own.
    pub(super) async fn whose(&self, token: &[u8], parts: &Parts) -> Option<Caller> {
        let ConnectInfo(peer) = parts.extensions.get::<ConnectInfo<SocketAddr>>()?;
        if self.guesses.wait(peer.ip(), Instant::now()).is_some() {
            return None;
        }
        self.recognise(token, *peer).await
    }
}

async fn sign_out(State(board): State<Board>, headers: HeaderMap, _: Signed) -> Response {
    let forget = board.sessions.end(&headers);
    (AppendHeaders([(header::SET_COOKIE, forget)]), Redirect::to("/sign-in")).into_response()
}

async fn choose_language(Path(tag): Path<String>, uri: Uri) -> Response {
    let back = query(&uri).remove("back").unwrap_or_default();
    let chosen = Lang::parse(&tag).unwrap_or(Lang::En).tag();
    let cookie = format!("{}={chosen}; Path=/; HttpOnly; SameSite=Strict; Max-Age=31536000", lang::COOKIE);
    (AppendHeaders([(header::SET_COOKIE, cookie)]), Redirect::to(own_place(&back))).into_response()
}

fn page(lang: Lang, next: &str, is_wrong: bool, has_no_token: bool) -> Markup {
    let other = lang.other();
    let body = html! {
        @if has_no_token {
            p.notice.bad role="alert" {
                (lang.t(
                    "No token is configured, so nobody can sign in: set admin.token and start the daemon again.",
                    "Nenhum token está configurado, então ninguém pode entrar: defina admin.token e reinicie o daemon.",
                ))
            }
        } @else if is_wrong {
            p.notice.bad role="alert" id="wrong" {
                (lang.t("That is not a token of this daemon.", "Este não é um token deste daemon."))
            }
        }
        form method="post" action="/sign-in" {
            input type="hidden" name="next" value=(next);
            label for="token" { "Token" }
            input #token type="password" name="token" required autofocus autocomplete="current-password"
                aria-describedby="where" aria-invalid=[is_wrong.then_some("true")];
            p #where .quiet {
                (lang.t("It stands in the configuration, at ", "Está na configuração, em ")) code { "admin.token" } "."
            }
            button type="submit" { (lang.t("Sign in", "Entrar")) }
        }
        p.quiet {
            a href={ "/language/" (other.tag()) "?back=" (escaped(&format!("/sign-in?next={}", escaped(next)))) } lang=(other.html()) {
                (other.t("English", "Português"))
            }
        }
    };
    layout::bare(lang, lang.t("Sign in", "Entrar"), &body)
}
