//! What the listener answers.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

/// Asked of a sender whose event cannot be kept now.
const RETRY_AFTER_SECS: &str = "5";

/// An answer. Its text is fixed, so that nothing of a request is ever repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    Accepted,
    Doubtful,
    NotAnObject,
    Unauthorized,
    ForeignAddress,
    NoSuchPath,
    NotPost,
    TooSlow,
    TooLarge,
    NotJson,
    Unavailable(&'static str),
}

impl Reply {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Accepted => StatusCode::OK,
            Self::Doubtful | Self::NotAnObject => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::ForeignAddress => StatusCode::FORBIDDEN,
            Self::NoSuchPath => StatusCode::NOT_FOUND,
            Self::NotPost => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The stable code, for the sender, logs and metrics.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Doubtful => "malformed_request",
            Self::NotAnObject => "not_a_json_object",
            Self::Unauthorized => "unauthorized",
            Self::ForeignAddress => "address_not_allowed",
            Self::NoSuchPath => "not_found",
            Self::NotPost => "method_not_allowed",
            Self::TooSlow => "too_slow",
            Self::TooLarge => "too_large",
            Self::NotJson => "not_json",
            Self::Unavailable(code) => code,
        }
    }

    fn message(self) -> &'static str {
        match self {
            Self::Accepted => "",
            Self::Doubtful => "send one Content-Length or one Transfer-Encoding, and end lines with CR LF",
            Self::NotAnObject => "send one JSON object in UTF-8, at most 64 levels deep",
            Self::Unauthorized => "send exactly one Authorization header with a value of webhook.authorization",
            Self::ForeignAddress => "this address is not in webhook.allow_ips",
            Self::NoSuchPath => "only webhook.path is served here",
            Self::NotPost => "use POST",
            Self::TooSlow => "send the whole body within webhook.body_timeout",
            Self::TooLarge => "the body is larger than webhook.max_body",
            Self::NotJson => "send Content-Type: application/json without a Content-Encoding",
            Self::Unavailable(_) => "the event was not kept; send it again",
        }
    }

    /// The answer; `closes` ends the connection with it.
    pub(super) fn into_response(self, closes: bool) -> Response<Full<Bytes>> {
        let body = match self {
            Self::Accepted => Bytes::from_static(br#"{"status":"accepted"}"#),
            _ => Bytes::from(format!(r#"{{"error":"{}","message":"{}"}}"#, self.code(), self.message())),
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self {
            Self::NotPost => drop(headers.insert(ALLOW, HeaderValue::from_static("POST"))),
            Self::Unavailable(_) => drop(headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECS))),
            _ => {}
        }
        if closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
