//! Wrong tokens by address, so that nobody finds a right one by trying.
//!
//! *Takes* each wrong token. *Gives* whether an address has tried too many; the listener decides what follows from
//! that. *Promises* that one wrong token counts once, however often a program sends it that was not told of the new
//! one, and that at most `MOST_ADDRESSES` addresses are remembered. *Not here*: requests without a token, which guess
//! nothing; a page of another site could send them in the operator's own name.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Different wrong tokens that an address may try within [`WINDOW`].
const MOST_GUESSES: usize = 20;

/// From an address's first wrong token on.
const WINDOW: Duration = Duration::from_mins(1);

/// Addresses that are remembered at a time.
const MOST_ADDRESSES: usize = 1024;

/// The wrong tokens of the last minute. Cheap to clone.
#[derive(Clone, Default)]
pub struct Guesses(Arc<Mutex<HashMap<IpAddr, Tried>>>);

/// What one address tried.
struct Tried {
    until: Instant,
    tokens: Vec<blake3::Hash>,
}

impl Guesses {
    /// For how long `address` still counts as one that tried too many; `None` when it does not.
    pub fn wait(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let tried = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tried = tried.get(&network(address)).filter(|tried| tried.until > now)?;
        (tried.tokens.len() >= MOST_GUESSES).then(|| tried.until - now)
    }

    /// Notes that `address` sent a wrong token. True when that was one too many, once a minute.
    pub fn note(&self, address: IpAddr, token: &[u8], now: Instant) -> bool {
        self.enter(address, token, now).is_too_many
    }

    /// The same; true when it did not send this one before, within a minute, and fewer than are too many.
    pub fn note_new(&self, address: IpAddr, token: &[u8], now: Instant) -> bool {
        self.enter(address, token, now).is_new
    }

    fn enter(&self, address: IpAddr, token: &[u8], now: Instant) -> Noted {
        let token = blake3::hash(token);
        let mut tried = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tried.len() >= MOST_ADDRESSES {
            tried.retain(|_, tried| tried.until > now);
        }
        if tried.len() >= MOST_ADDRESSES {
            let oldest = tried.iter().min_by_key(|(_, tried)| tried.until).map(|(&address, _)| address);
            oldest.and_then(|oldest| tried.remove(&oldest));
        }
        let fresh = || Tried { until: now + WINDOW, tokens: Vec::new() };
        let own = tried.entry(network(address)).or_insert_with(fresh);
        if own.until <= now {
            *own = fresh();
        }
        let is_new = own.tokens.len() < MOST_GUESSES && !own.tokens.contains(&token);
        if is_new {
            own.tokens.push(token);
        }
        Noted { is_new, is_too_many: is_new && own.tokens.len() == MOST_GUESSES }
    }
}

/// What a wrong token was to its address.
struct Noted {
    is_new: bool,
    is_too_many: bool,
}

/// What stands for whoever has `address`: who has one of IPv6 has the 2^64 beside it.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn whoever_tries_many_tokens_waits_and_others_do_not() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        let (guesser, other) = (address("192.0.2.7"), address("192.0.2.8"));
        for number in 0..MOST_GUESSES {
            assert_eq!(guesses.wait(guesser, now), None, "{number}");
            let is_too_many = guesses.note(guesser, format!("guess {number}").as_bytes(), now);
            assert_eq!(is_too_many, number + 1 == MOST_GUESSES, "{number}");
        }
        assert!(!guesses.note(guesser, b"one more", now), "it is told once");
        assert_eq!((guesses.wait(guesser, now), guesses.wait(other, now)), (Some(WINDOW), None));
        assert_eq!(guesses.wait(guesser, now + WINDOW), None);
    }

    #[test]
    fn an_old_token_that_is_sent_again_counts_once_and_a_network_of_ipv6_is_one_address() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        for _ in 0..100 {
            guesses.note(address("192.0.2.7"), b"the token of last year", now);
        }
        assert_eq!(guesses.wait(address("192.0.2.7"), now), None);
        for number in 0..MOST_GUESSES {
            guesses.note(address(&format!("2001:db8::{number}")), format!("guess {number}").as_bytes(), now);
        }
        assert!(guesses.wait(address("2001:db8::ffff:1"), now).is_some());
        assert_eq!(guesses.wait(address("2001:db8:0:1::1"), now), None);
    }

    #[test]
    fn each_guess_is_new_once_a_minute_as_long_as_they_are_not_too_many() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        let is_new = |address_of: &str, number: usize, now| {
            guesses.note_new(address(address_of), format!("guess {number}").as_bytes(), now)
        };
        let new = (0..5 * MOST_GUESSES).filter(|&number| is_new("192.0.2.7", number / 2, now)).count();
        assert_eq!((new, is_new("192.0.2.8", 0, now)), (MOST_GUESSES, true));
        assert!(is_new("192.0.2.7", 0, now + WINDOW) && !is_new("192.0.2.7", 0, now + WINDOW));
    }

    #[test]
    fn no_more_is_remembered_than_is_bounded() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        for number in 0..2 * u32::try_from(MOST_ADDRESSES).unwrap() {
            guesses.note(std::net::Ipv4Addr::from_bits(number).into(), b"guess", now);
        }
        assert_eq!(guesses.0.lock().unwrap().len(), MOST_ADDRESSES);
    }
}
