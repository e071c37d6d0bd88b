//! The projected token and the CA bundle, read from their files whenever they are used: both are rotated
//! under a running agent. Never logs a token.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Certificate;

/// The stream is renewed so long before its token's end. The kubelet writes a new one at 80 % of its life.
const RENEW_BEFORE: Duration = Duration::from_secs(300);
/// A token without a readable end is presented again after so long.
const RENEW_ANYWAY: Duration = Duration::from_secs(1800);

/// Why there is nothing to present.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("can not read {what} {path}: {source}")]
    Read {
        /// Token or CA.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The token has characters that no token has.
    #[error("{0} does not contain a token")]
    NotAToken(PathBuf),
}

/// A token and the time until which it is good to use.
#[derive(Debug)]
pub struct Token {
    /// For the `authorization` metadata; marked as sensitive.
    pub header: MetadataValue<Ascii>,
    /// How long a stream may live on it.
    pub renew_after: Duration,
}

/// Where token and CA are.
#[derive(Clone, Debug)]
pub struct Credentials {
    token_file: Arc<Path>,
    ca_file: Arc<Path>,
}

impl Credentials {
    /// Remembers the files; they may appear later.
    pub fn new(token_file: &Path, ca_file: &Path) -> Self {
        Self {
            token_file: token_file.into(),
            ca_file: ca_file.into(),
        }
    }

    /// The token as it is now.
    pub fn token(&self) -> Result<Token, Error> {
        let text = read("the token", &self.token_file)?;
        let token = text.trim();
        let mut header: MetadataValue<Ascii> = format!("Bearer {token}")
            .parse()
            .map_err(|_| Error::NotAToken(self.token_file.to_path_buf()))?;
        header.set_sensitive(true);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let left = expiry(token).map(|end| Duration::from_secs(end).saturating_sub(now));
        Ok(Token {
            header,
            renew_after: left.map_or(RENEW_ANYWAY, |left| {
                // Not in a tight loop, should the file hold an old token.
                left.saturating_sub(RENEW_BEFORE)
                    .max(Duration::from_secs(30))
            }),
        })
    }

    /// The CA bundle as it is now.
    pub fn ca(&self) -> Result<Certificate, Error> {
        Ok(Certificate::from_pem(read("the CA bundle", &self.ca_file)?))
    }

    /// Changes with the CA bundle; none while it cannot be read.
    pub fn ca_fingerprint(&self) -> Option<u64> {
        let text = std::fs::read(&self.ca_file).ok()?;
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Some(hasher.finish())
    }
}

fn read(what: &'static str, path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read {
        what,
        path: path.to_owned(),
        source,
    })
}

/// `exp` of a JWT, in seconds of Unix time. Only to renew in time: whether to believe it is the server's.
fn expiry(token: &str) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: u64,
    }
    let payload = base64url(token.split('.').nth(1)?)?;
    Some(serde_json::from_slice::<Claims>(&payload).ok()?.exp)
}

/// RFC 4648 section 5, without padding, as JWTs have it.
fn base64url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut filled) = (0_u32, 0_u32);
    for c in text.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        filled += 6;
        if filled >= 8 {
            filled -= 8;
            bytes.push((bits >> filled) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(token: &str) -> (tempfile::TempDir, Credentials) {
        let dir = tempfile::tempdir().unwrap();
        let (token_file, ca_file) = (dir.path().join("token"), dir.path().join("ca.crt"));
        std::fs::write(&token_file, token).unwrap();
        let credentials = Credentials::new(&token_file, &ca_file);
        (dir, credentials)
    }

    #[test]
    fn a_token_is_renewed_before_its_end_and_never_shown() {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        // {"exp":...} by hand: the payload's encoding is what is tested below.
        let payload = encode(format!("{{\"aud\":[\"x\"],\"exp\":{}}}", now + 3600).as_bytes());
        let (_dir, credentials) = files(&format!("e30.{payload}.c2ln\n"));
        let token = credentials.token().unwrap();
        let renew = token.renew_after.as_secs();
        assert!((3295..=3300).contains(&renew), "{renew}");
        assert!(!format!("{token:?}").contains(&payload));
        assert_eq!(
            token.header.to_str().unwrap(),
            format!("Bearer e30.{payload}.c2ln")
        );
    }

    #[test]
    fn an_opaque_token_is_renewed_too() {
        let (_dir, credentials) = files("opaque");
        assert_eq!(credentials.token().unwrap().renew_after, RENEW_ANYWAY);
    }

    #[test]
    fn what_is_missing_is_named() {
        let (dir, credentials) = files("a\nb");
        assert!(matches!(credentials.token(), Err(Error::NotAToken(_))));
        let error = credentials.ca().unwrap_err().to_string();
        assert!(
            error.contains("CA bundle") && error.contains("ca.crt"),
            "{error}"
        );
        assert_eq!(credentials.ca_fingerprint(), None);
        std::fs::write(dir.path().join("ca.crt"), "one").unwrap();
        let one = credentials.ca_fingerprint();
        std::fs::write(dir.path().join("ca.crt"), "two").unwrap();
        assert!(one.is_some() && credentials.ca_fingerprint() != one);
    }

    fn encode(bytes: &[u8]) -> String {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let mut word = [0; 4];
            word[1..=chunk.len()].copy_from_slice(chunk);
            let bits = u32::from_be_bytes(word);
            for i in 0..=chunk.len() {
                text.push(ALPHABET[(bits >> (18 - 6 * i)) as usize & 63] as char);
            }
        }
        text
    }

    proptest::proptest! {
        #[test]
        fn base64url_reads_what_was_written(bytes: Vec<u8>) {
            proptest::prop_assert_eq!(base64url(&encode(&bytes)), Some(bytes));
        }
    }
}
