//! Who may ask for what on the admin listener: three roles, each of which includes the one before.
//!
//! *Takes* the tokens of the configuration. *Gives* the [`Caller`] that a token belongs to. *Promises* that comparing
//! takes as long for every guess, and that a caller's name tells where its token stands and nothing of the token. *Not
//! here*: what needs which role; each path of [`super::v1`] says it.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::config;

/// What a token may be used for; a later one includes those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looking: nothing changes by it.
    Read,
    /// Ordering what can be ordered again: refreshes, jobs, publishes, replays, widget sessions.
    Operate,
    /// Removing what does not come back: erasures, and deletion at Belvo.
    Erase,
}

impl Role {
    /// Every role, the least first.
    pub const ALL: [Self; 3] = [Self::Read, Self::Operate, Self::Erase];

    /// The word for it in answers and in the audit.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Erase => "erase",
        }
    }

    /// Whether it is enough for what needs `needed`.
    pub fn may(self, needed: Self) -> bool {
        self >= needed
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose token a request carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Where the token stands in the configuration, such as `admin.token` or `admin.read_tokens 2`.
    pub name: Arc<str>,
    /// What it may do.
    pub role: Role,
}

/// The tokens that are accepted; a reload replaces them. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Tokens(Arc<RwLock<Vec<Token>>>);

struct Token {
    /// Instead of the token, so that all that is compared is of one length.
    hash: blake3::Hash,
    caller: Caller,
}

impl Tokens {
    /// The tokens of `settings`.
    pub fn of(settings: &config::Admin) -> Self {
        Self(Arc::new(RwLock::new(Self::read(settings))))
    }

    /// From now on the tokens of `settings`, and no others.
    pub fn replace(&self, settings: &config::Admin) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Self::read(settings);
    }

    fn read(settings: &config::Admin) -> Vec<Token> {
        let token = |name: String, role, token: &SecretString| Token {
            hash: blake3::hash(token.expose_secret().as_bytes()),
            caller: Caller { name: name.into(), role },
        };
        let all = settings.token.iter().map(|secret| token("admin.token".to_owned(), Role::Erase, secret));
        let lists = [
            ("admin.operate_tokens", Role::Operate, &settings.operate_tokens),
            ("admin.read_tokens", Role::Read, &settings.read_tokens),
        ];
        let listed = lists.into_iter().flat_map(|(key, role, tokens)| {
            tokens.iter().zip(1..).map(move |(secret, place)| token(format!("{key} {place}"), role, secret))
        });
        all.chain(listed).collect()
    }

    /// Whether nobody can be recognised.
    pub fn is_empty(&self) -> bool {
        self.held().is_empty()
    }

    /// Whose token `given` is.
    pub fn recognise(&self, given: &[u8]) -> Option<Caller> {
        self.whose(blake3::hash(given))
    }

    /// Whose token has this hash, now.
    pub(super) fn whose(&self, given: blake3::Hash) -> Option<Caller> {
        // Every token is compared, whichever one fits.
        self.held().iter().fold(None, |found, token| {
            let is_equal = bool::from(given.as_bytes().ct_eq(token.hash.as_bytes()));
            if is_equal { Some(token.caller.clone()) } else { found }
        })
    }

    fn held(&self) -> RwLockReadGuard<'_, Vec<Token>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_includes_those_before_it() {
        let allowed = |role: Role| Role::ALL.into_iter().filter(|&needed| role.may(needed)).collect::<Vec<_>>();
        assert_eq!(allowed(Role::Read), [Role::Read]);
        assert_eq!(allowed(Role::Operate), [Role::Read, Role::Operate]);
        assert_eq!(allowed(Role::Erase), Role::ALL);
    }

    #[test]
    fn each_token_is_recognised_by_the_place_where_it_stands() {
        let settings = config::Admin {
            listen: ([127, 0, 0, 1], 0).into(),
            token: Some("token-of-everything".into()),
            operate_tokens: vec!["token-of-operator-1".into(), "token-of-operator-2".into()],
            read_tokens: vec!["token-of-a-reader-1".into()],
            allowed_hosts: Vec::new(),
        };
        let tokens = Tokens::of(&settings);
        let who = |token: &str| tokens.recognise(token.as_bytes()).map(|caller| (caller.name.to_string(), caller.role));
        assert_eq!(who("token-of-everything"), Some(("admin.token".to_owned(), Role::Erase)));
        assert_eq!(who("token-of-operator-2"), Some(("admin.operate_tokens 2".to_owned(), Role::Operate)));
        assert_eq!(who("token-of-a-reader-1"), Some(("admin.read_tokens 1".to_owned(), Role::Read)));
        assert_eq!((who(""), who("token-of-everythinG"), tokens.is_empty()), (None, None, false));
    }
}
