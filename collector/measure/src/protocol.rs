//! The protocols by which requests come, as `ebpfscaler.io/protocol` names them, and which of the counters is whose.

use crate::totals::Total;

macro_rules! protocols {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// A protocol whose requests are counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Protocol { $($(#[doc = $doc])+ $variant,)+ }

        impl Protocol {
            /// Every protocol.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// Their names, for people.
            pub const NAMES: &'static [&'static str] = &[$($name,)+];

            /// The protocol of this name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

protocols! {
    /// HTTP/1.0 and 1.1
    Http1 => "http1",
    /// HTTP/2, gRPC included
    Http2 => "http2",
    /// RESP, which Redis and its kin speak
    Redis => "redis",
    /// PostgreSQL's protocol
    Postgresql => "postgresql",
}

impl Protocol {
    /// How many of the requests are of this protocol.
    pub fn requests(self, get: impl Fn(Total) -> f64) -> f64 {
        match self {
            Self::Http1 => {
                let others = get(Total::RequestsHttp2)
                    + get(Total::RequestsRedis)
                    + get(Total::RequestsPostgresql);
                (get(Total::Requests) - others).max(0.0)
            }
            Self::Http2 => get(Total::RequestsHttp2),
            Self::Redis => get(Total::RequestsRedis),
            Self::Postgresql => get(Total::RequestsPostgresql),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocols_share_the_requests_among_them() {
        let get = |total| match total {
            Total::Requests => 10.0,
            Total::RequestsHttp2 => 1.0,
            Total::RequestsRedis => 2.0,
            Total::RequestsPostgresql => 3.0,
            _ => 100.0,
        };
        let of = |p: &Protocol| p.requests(get);
        assert_eq!(Protocol::from_name("redis").map(|p| of(&p)), Some(2.0));
        assert_eq!(Protocol::from_name("http1").map(|p| of(&p)), Some(4.0));
        assert_eq!(Protocol::from_name("HTTP"), None);
        assert_eq!(Protocol::ALL.iter().map(of).sum::<f64>(), 10.0);
    }
}
