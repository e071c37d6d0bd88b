//! A strict reader of chunked bodies (RFC 9112, 7.1), for comparison: it takes nothing that the RFC does not allow.

/// Where a chunked body ends.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunked {
    /// Complete, in so many bytes.
    Complete(usize),
    /// A chunk's bytes are not all there.
    Partial,
    /// Not allowed, or with lines that this reader does not judge.
    Unclear,
}

/// Longer lines count as header bytes, of which the machine takes 16 KiB.
const LONGEST_LINE: usize = 1024;

/// Reads the body that the bytes begin with.
pub fn chunked(bytes: &[u8]) -> Chunked {
    let mut at = 0;
    loop {
        let (size, next) = match line(bytes, at) {
            Ok((text, next)) => match size(text) {
                Some(size) => (size, next),
                None => return Chunked::Unclear,
            },
            Err(stop) => return stop,
        };
        at = next;
        if size == 0 {
            return trailers(bytes, at);
        }
        match bytes.get(at + size..at + size + 2) {
            Some(b"\r\n") => at += size + 2,
            Some(_) => return Chunked::Unclear,
            None => return Chunked::Partial,
        }
    }
}

fn trailers(bytes: &[u8], mut at: usize) -> Chunked {
    for _ in 0..8 {
        match line(bytes, at) {
            Ok((b"", next)) => return Chunked::Complete(next),
            Ok((text, next)) => {
                let name = text.iter().position(|b| *b == b':').unwrap_or(0);
                if name == 0 || !text[..name].iter().all(u8::is_ascii_alphanumeric) {
                    return Chunked::Unclear;
                }
                at = next;
            }
            Err(stop) => return stop,
        }
    }
    Chunked::Unclear
}

/// A line of printable text without its CRLF, and where the next begins.
fn line(bytes: &[u8], at: usize) -> Result<(&[u8], usize), Chunked> {
    let rest = &bytes[at.min(bytes.len())..];
    // What is there of a line may be wrong already.
    let Some(end) = rest.iter().position(|b| *b == b'\n') else {
        return Err(Chunked::Unclear);
    };
    match rest[..end].strip_suffix(b"\r") {
        Some(text) if end < LONGEST_LINE && text.iter().all(|b| (b' '..=b'~').contains(b)) => {
            Ok((text, at + end + 1))
        }
        _ => Err(Chunked::Unclear),
    }
}

/// Digits, and perhaps an extension behind them.
fn size(text: &[u8]) -> Option<usize> {
    let digits = text.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let extension = &text[digits..];
    if digits == 0 || digits > 8 || !(extension.is_empty() || extension.starts_with(b";")) {
        return None;
    }
    usize::from_str_radix(std::str::from_utf8(&text[..digits]).ok()?, 16).ok()
}
