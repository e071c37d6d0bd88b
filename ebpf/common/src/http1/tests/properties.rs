//! Random cuts, random bytes, and the same framing as httparse.

use proptest::prelude::*;

use super::*;

fn header() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just("Content-Length".to_string()),
        Just("content-type".into()),
        Just("Content-Lengthy".into()),
        Just("Transfer-Encoding".into()),
        Just("transfer-encodings".into()),
        Just("User-Agent".into()),
        "[A-Za-z][A-Za-z0-9-]{0,20}",
    ];
    let value = prop_oneof![
        Just("chunked".to_string()),
        Just("gzip, chunked".into()),
        Just("kube-probe/1.2".into()),
        "[0-9]{1,3}",
        "[ -~]{0,60}",
    ];
    (name, value).prop_map(|(n, v)| format!("{n}: {v}\r\n"))
}

proptest! {
    #[test]
    fn random_cuts_change_nothing(cuts in prop::collection::vec(any::<usize>(), 0..40), repeat in 1usize..4) {
        let (stream, expected) = mixed_requests();
        let (stream, expected) = (stream.repeat(repeat), expected.repeat(repeat));
        prop_assert_eq!(requests(&stream, &cuts), expected);
        let (stream, expected, heads) = mixed_responses();
        prop_assert_eq!(responses(&stream, &cuts, &heads), expected);
    }

    #[test]
    fn random_bytes_stay_within_the_bound(bytes in prop::collection::vec(any::<u8>(), 0..3000), cuts in prop::collection::vec(any::<usize>(), 0..20)) {
        requests(&bytes, &cuts);
        responses(&bytes, &cuts, &[]);
    }

    #[test]
    fn bytes_of_http_alphabet_stay_within_the_bound(text in "(GET / HTTP/1.1|HTTP/1.1 200 OK|\r\n|Content-Length: |[0-9]|Transfer-Encoding: chunked|a;| |:){0,60}", cuts in prop::collection::vec(any::<usize>(), 0..20)) {
        requests(text.as_bytes(), &cuts);
        responses(text.as_bytes(), &cuts, &[]);
    }

    /// Two equal requests in a row: the machine finds the second exactly where httparse's reading of the first puts it.
    #[test]
    fn agrees_with_httparse(headers in prop::collection::vec(header(), 0..8), cuts in prop::collection::vec(any::<usize>(), 0..6)) {
        // What is ambiguous (several lengths or codings) servers refuse, so it is left out.
        let count = |prefix: &str| headers.iter().filter(|h| h.to_lowercase().starts_with(prefix)).count();
        prop_assume!(count("content-length:") <= 1 && count("transfer-encoding:") <= 1 && count("user-agent:") <= 1);
        let head = format!("POST /x HTTP/1.1\r\n{}\r\n", headers.concat());
        let mut parsed = [httparse::EMPTY_HEADER; 16];
        let mut request = httparse::Request::new(&mut parsed);
        prop_assume!(request.parse(head.as_bytes()).is_ok());
        let value = |name: &str| {
            request.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| String::from_utf8_lossy(h.value).trim().to_string())
        };
        let length = match value("content-length") {
            None => 0,
            Some(text) => { prop_assume!(text.parse::<usize>().is_ok()); text.parse().unwrap() }
        };
        let coding = value("transfer-encoding");
        let chunked = coding.as_deref().is_some_and(|c| c.rsplit(',').next().unwrap().trim().eq_ignore_ascii_case("chunked"));
        prop_assume!(coding.is_none() || chunked);
        let body = if chunked { "3\r\nabc\r\n0\r\n\r\n".to_string() } else { "GET / HTTP/1.1\r\n\r\n".repeat(60)[..length].to_string() };
        let probe = value("user-agent").is_some_and(|v| v.starts_with("kube-probe/"));
        let stream = format!("{head}{body}{head}{body}GET /end HTTP/1.1\r\n\r\n").into_bytes();
        let kind = Seen::Request(if probe { flag::PROBE } else { 0 });
        prop_assert_eq!(requests(&stream, &cuts), [kind, kind, Seen::Request(0)]);
    }
}
