//! One HTTP answer: what is in it, and how well it arrives.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::json::Json;

/// An answer that has not been sent.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Bytes,
    /// How the body arrives.
    pub delivery: Delivery,
    /// The id of the request, for error bodies.
    pub request_id: String,
}

/// How a body arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// As it is.
    Whole,
    /// The connection breaks after so many bytes.
    Cut {
        /// Bytes that arrive.
        after: usize,
    },
    /// A few bytes at a time.
    Drip {
        /// Bytes at a time.
        bytes: usize,
        /// Pause between them.
        every: Duration,
    },
    /// Headers, and nothing more.
    Silence,
    /// Not even headers.
    Never,
    /// The body, and then more of it, for ever.
    Endless,
}

impl Answer {
    /// JSON.
    pub(super) fn json(status: u16, body: impl Into<Bytes>) -> Self {
        let headers = vec![("content-type", "application/json".to_owned())];
        Self { status, headers, body: body.into(), delivery: Delivery::Whole, request_id: String::new() }
    }

    /// No body.
    pub(super) fn nothing(status: u16) -> Self {
        Self { headers: Vec::new(), ..Self::json(status, Bytes::new()) }
    }

    /// A page such as the one in front of Belvo sends.
    pub(super) fn html(status: u16, title: &str) -> Self {
        let page = format!(
            "<html>\r\n<head><title>{status} {title}</title></head>\r\n<body>\r\n<center><h1>{status} {title}</h1></center>\r\n\
             <hr><center>openresty</center>\r\n</body>\r\n</html>\r\n"
        );
        Self { headers: vec![("content-type", "text/html".to_owned())], ..Self::json(status, page) }
    }

    /// An error in Belvo's form: an array of objects.
    pub(super) fn error(status: u16, code: &str, message: &str, request_id: &str, field: Option<&str>) -> Self {
        let mut object =
            Json::object([("code", code.into()), ("message", message.into()), ("request_id", request_id.into())]);
        if let Some(field) = field {
            object.set("field", field.into());
        }
        Self::json(status, Json::List(vec![object]).to_bytes())
    }

    /// The error that usually comes with `status`, or the one named `code`.
    pub(super) fn error_for(status: u16, code: Option<&str>, message: Option<&str>, request_id: &str) -> Self {
        let (usual, usual_message) =
            ERRORS.iter().find(|(of, name, _)| code.map_or(*of == status, |code| code == *name)).map_or(
                ("unexpected_error", "Belvo is unable to process the request due to an internal system issue"),
                |e| (e.1, e.2),
            );
        if status == 429 && code.is_none() {
            // What Belvo writes here is not known.
            return Self::html(429, "Too Many Requests");
        }
        Self::error(status, code.unwrap_or(usual), message.unwrap_or(usual_message), request_id, None)
    }

    /// The answer as the server sends it; `None` when it never answers.
    pub(super) fn into_response(self) -> Option<Response<Body>> {
        let body = match self.delivery {
            Delivery::Never => return None,
            Delivery::Whole => Body::from(self.body),
            script => scripted(self.body, script),
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert("x-vinculo-simulated", HeaderValue::from_static("true"));
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        headers.insert(header::SERVER, HeaderValue::from_static("vinculo-simulate"));
        Some(response)
    }
}

/// Status, code, message.
const ERRORS: &[(u16, &str, &str)] = &[
    (400, "validation_error", "This request is not valid"),
    (400, "invalid_link", "The link has been invalidated. You may need to update link credentials"),
    (400, "login_error", "Invalid credentials provided to login to the institution"),
    (
        400,
        "too_many_sessions",
        "Impossible to login, a session is already opened with this institution using these credentials",
    ),
    (400, "institution_down", "The financial institution is down, try again later"),
    (400, "institution_unavailable", "The financial institution is unavailable"),
    (400, "institution_inactive", "The institution has been temporarily deactivated"),
    (400, "session_expired", "Impossible to resume a session, please start from the beginning"),
    (401, "authentication_failed", "Invalid Secret Keys"),
    (403, "access_to_resource_denied", "You don't have access to this resource."),
    (403, "permission_denied", "You do not have permission to perform this action."),
    (404, "not_found", "Not found"),
    (405, "method_not_allowed", "Method not allowed"),
    (
        408,
        "request_timeout",
        "The request timed out, you can retry asking for less data by changing your query parameters",
    ),
    (409, "link_refreshed", "The link has already been refreshed. Please wait 10 minutes before trying again."),
    (428, "token_required", "A MFA token is required by the institution to login"),
    (428, "activation_required", "The user must activate access at the institution"),
    (500, "unexpected_error", "Belvo is unable to process the request due to an internal system issue"),
];

fn scripted(body: Bytes, script: Delivery) -> Body {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        // The receiver goes away with the client, and then there is nothing left to do.
        let _ = play(body, script, sender).await;
    });
    Body::new(Scripted(receiver))
}

type Chunks = mpsc::Sender<io::Result<Bytes>>;

async fn play(body: Bytes, script: Delivery, to: Chunks) -> Result<(), mpsc::error::SendError<io::Result<Bytes>>> {
    match script {
        Delivery::Cut { after } => {
            to.send(Ok(body.slice(..after.min(body.len())))).await?;
            // Hyper drops an error together with what it has not flushed: give it the time to send.
            tokio::time::sleep(Duration::from_millis(20)).await;
            to.send(Err(io::Error::other("the simulator cut the body short"))).await
        }
        Delivery::Drip { bytes, every } => {
            for start in (0..body.len()).step_by(bytes) {
                to.send(Ok(body.slice(start..(start + bytes).min(body.len())))).await?;
                tokio::time::sleep(every).await;
            }
            Ok(())
        }
        Delivery::Endless => {
            to.send(Ok(body)).await?;
            let more = Bytes::from(vec![b' '; 64 * 1_024]);
            loop {
                to.send(Ok(more.clone())).await?;
            }
        }
        Delivery::Whole | Delivery::Silence | Delivery::Never => {
            to.closed().await;
            Ok(())
        }
    }
}

/// A body whose chunks come when the script says so.
struct Scripted(mpsc::Receiver<io::Result<Bytes>>);

impl HttpBody for Scripted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}

/// Some 3 MB of gzip that unpack to more than 400 MB of blanks: one literal, then copies of 258 bytes at distance 1,
/// each of 13 bits. The end is missing; a reader that gets there has unpacked it all.
pub(super) fn gzip_bomb() -> Bytes {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let (mut held, mut bits) = (0_u64, 0_u32);
    let mut put = |value: u64, count: u32, out: &mut Vec<u8>| {
        held |= value << bits;
        bits += count;
        while bits >= 8 {
            out.push((held & 0xff) as u8);
            held >>= 8;
            bits -= 8;
        }
    };
    // Last block, fixed codes; Huffman codes go in with their highest bit first, hence reversed.
    put(0b011, 3, &mut out);
    put(u64::from((0x30_u8 + b' ').reverse_bits()), 8, &mut out);
    for _ in 0..1_900_000 {
        // Length 258 is symbol 285, code 1100_0101; distance 1 is symbol 0 in five bits.
        put(u64::from(0b1100_0101_u8.reverse_bits()), 8, &mut out);
        put(0, 5, &mut out);
    }
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_arrays_with_code_message_and_request_id() {
        let answer = Answer::error_for(401, None, None, "0123456789abcdef0123456789abcdef");
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body[0]["code"], "authentication_failed");
        assert_eq!(body[0]["message"], "Invalid Secret Keys");
        assert_eq!(body[0]["request_id"], "0123456789abcdef0123456789abcdef");
        assert_eq!(answer.status, 401);
    }
}
