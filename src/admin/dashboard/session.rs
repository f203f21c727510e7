//! Who looks at a page: sessions, and the signature that every order of a form carries.
//!
//! *Takes* cookies and the fields of forms. *Gives* a [`Viewer`] to every page, and [`Signed`] or [`Ordered`] fields to
//! whatever changes something. *Promises* that nothing is shown without a session or a bearer token, that a
//! session dies after [`LIVES_FOR`], at a sign-out, with its token and with the process, that no order is taken which
//! our own page did not show to this very session, nor one of a viewer whose role only looks. *Not here*: whose token
//! it was; see [`role`](crate::admin::role).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use subtle::ConstantTimeEq;

use super::lang::Lang;
use super::{Board, Trouble};
use crate::admin::bearer;
use crate::admin::role::{Caller, Role};
use crate::sensitive::hex;

/// The name of the session's cookie.
pub(super) const COOKIE: &str = "vinculo_session";

/// How long a session lasts.
const LIVES_FOR: Duration = Duration::from_hours(12);

/// So many sessions at once; the one that ends first makes room.
const MOST: usize = 256;

/// Bytes of a form.
const LARGEST_FORM: usize = 16 << 10;

/// The sessions of this process. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Sessions(Arc<Mutex<HashMap<blake3::Hash, Session>>>);

#[derive(Clone)]
struct Session {
    /// Instead of the token that it was begun with.
    token: blake3::Hash,
    signature: Arc<str>,
    ends_at: Instant,
}

impl Sessions {
    /// Begins a session of whoever has `token`, and gives the cookie for it.
    pub(super) fn begin(&self, token: &[u8], is_https: bool) -> String {
        let (id, now) = (secret(), Instant::now());
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| session.ends_at > now);
        if sessions.len() >= MOST
            && let Some(first) = sessions.iter().min_by_key(|(_, session)| session.ends_at).map(|(id, _)| *id)
        {
            sessions.remove(&first);
        }
        let token = blake3::hash(token);
        let session = Session { token, signature: secret().into(), ends_at: now + LIVES_FOR };
        sessions.insert(blake3::hash(id.as_bytes()), session);
        let secure = if is_https { "; Secure" } else { "" };
        format!("{COOKIE}={id}; Path=/; HttpOnly; SameSite=Strict; Max-Age={}{secure}", LIVES_FOR.as_secs())
    }

    /// Ends the session of `headers`, and gives what makes the browser forget its cookie.
    pub(super) fn end(&self, headers: &HeaderMap) -> String {
        if let Some(id) = cookie(headers, COOKIE) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&blake3::hash(id.as_bytes()));
        }
        format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0")
    }

    fn find(&self, headers: &HeaderMap) -> Option<Session> {
        let id = blake3::hash(cookie(headers, COOKIE)?.as_bytes());
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&id).filter(|session| session.ends_at > Instant::now()).cloned()
    }
}

fn secret() -> String {
    hex(&rand::random::<[u8; 32]>())
}

/// The cookie called `name`.
pub(super) fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let pairs = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    pairs.flat_map(|pairs| pairs.split(';')).find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then(|| value.to_owned())
    })
}

/// Who looks at a page.
#[derive(Clone)]
pub(super) struct Viewer {
    /// In which language.
    pub(super) lang: Lang,
    /// Whose token it was.
    pub(super) caller: Caller,
    /// What every form that is shown carries.
    pub(super) signature: Arc<str>,
    /// Whether Belvo is a simulated one.
    pub(super) is_simulated: bool,
    /// The path and query of the page.
    pub(super) place: String,
}

impl Viewer {
    /// Whether anything may be ordered.
    pub(super) fn may_operate(&self) -> bool {
        self.caller.role.may(Role::Operate)
    }
}

impl FromRequestParts<Board> for Viewer {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, board: &Board) -> Result<Self, Response> {
        let place = parts.uri.path_and_query().map_or("/", |place| place.as_str()).to_owned();
        let lang = Lang::of(&parts.headers);
        let is_simulated = board.settings.simulator.is_some();
        // A token that was withdrawn meanwhile shows nothing more, and one that may do less now does less.
        if let Some(Session { token, signature, .. }) = board.sessions.find(&parts.headers)
            && let Some(caller) = board.tokens.whose(token)
        {
            return Ok(Self { lang, caller, signature, is_simulated, place });
        }
        // A program reads a page with its token; no form of it can be sent without a session.
        if parts.method.is_safe()
            && let Some(token) = bearer(&parts.headers)
            && let Some(caller) = board.whose(token, parts).await
        {
            return Ok(Self { lang, caller, signature: secret().into(), is_simulated, place });
        }
        let back = if place == "/" || !parts.method.is_safe() {
            String::new()
        } else {
            format!("?next={}", super::escaped(&place))
        };
        Err(Redirect::to(&format!("/sign-in{back}")).into_response())
    }
}

/// The fields of a form that our own page showed to this session.
pub(super) struct Signed {
    /// Who sent it.
    pub(super) viewer: Viewer,
    fields: BTreeMap<String, String>,
}

impl Signed {
    /// What was filled in; empty when nothing was.
    pub(super) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", |value| value.trim())
    }
}

impl FromRequest<Board> for Signed {
    type Rejection = Response;

    async fn from_request(request: Request, board: &Board) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let viewer = Viewer::from_request_parts(&mut parts, board).await?;
        let fields = form(Request::from_parts(parts, body)).await?;
        let given = fields.get("signature").map_or("", String::as_str);
        if given.as_bytes().ct_eq(viewer.signature.as_bytes()).into() {
            return Ok(Self { viewer, fields });
        }
        ::metrics::counter!("vinculo_admin_refused_total").increment(1);
        tracing::warn!(code = "form_not_signed", caller = %viewer.caller.name, "a form came that was not shown to its session");
        Err(Trouble::new(
            StatusCode::FORBIDDEN,
            "This form is not of your session. Go back, load the page again and repeat the order.",
            "Este formulário não é da sua sessão. Volte, recarregue a página e repita a ordem.",
        )
        .into_response())
    }
}

/// The same from a viewer who may order something.
pub(super) struct Ordered(pub(super) Signed);

impl FromRequest<Board> for Ordered {
    type Rejection = Response;

    async fn from_request(request: Request, board: &Board) -> Result<Self, Response> {
        let signed = Signed::from_request(request, board).await?;
        let Caller { name, role } = &signed.viewer.caller;
        if role.may(Role::Operate) {
            return Ok(Self(signed));
        }
        ::metrics::counter!("vinculo_admin_refused_total").increment(1);
        tracing::warn!(code = "role_too_low", caller = %name, %role, "an order on a page needs another role");
        Err(Trouble::new(
            StatusCode::FORBIDDEN,
            "Your token only looks. Sign in with one that may operate.",
            "Seu token é só de leitura. Entre com um que possa operar.",
        )
        .into_response())
    }
}

/// Reads the fields of a form.
pub(super) async fn form(request: Request) -> Result<BTreeMap<String, String>, Response> {
    let bytes = axum::body::to_bytes(request.into_body(), LARGEST_FORM).await.map_err(|_| {
        Trouble::new(StatusCode::PAYLOAD_TOO_LARGE, "The form is too large.", "O formulário é grande demais.")
            .into_response()
    })?;
    Ok(url::form_urlencoded::parse(&bytes).into_owned().collect())
}
