//! Turns the report address into the addresses of replicas: a literal address, localhost, or a DNS name of
//! which each address is one replica. Never connects.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;

/// A DNS server that takes longer is asked again later; the streams that exist go on meanwhile.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Why no addresses are known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The flag does not parse.
    #[error("--report-address {0:?} is not HOST:PORT")]
    Address(String),
    /// The machine's DNS configuration is unusable.
    #[error("can not read the DNS configuration in /etc/resolv.conf: {0}")]
    Configuration(String),
    /// The look-up failed.
    #[error("{name}: {reason}")]
    Lookup {
        /// What was looked up.
        name: String,
        /// What the resolver said.
        reason: String,
    },
}

/// What the report address names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One address.
    Literal(SocketAddr),
    /// A name to look up, and the port.
    Name(String, u16),
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Literal(address));
        }
        let invalid = || Error::Address(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port: u16 = port.parse().map_err(|_| invalid())?;
        if host == "localhost" {
            return Ok(Self::Literal((Ipv4Addr::LOCALHOST, port).into()));
        }
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if host.is_empty() || host.len() > 253 || !host.bytes().all(is_name) {
            return Err(invalid());
        }
        Ok(Self::Name(host.to_owned(), port))
    }
}

/// Looks the target up again and again.
pub struct Discovery {
    target: Target,
    resolver: Option<TokioResolver>,
}

impl Discovery {
    /// Reads /etc/resolv.conf if the target is a name.
    pub fn new(target: Target) -> Result<Self, Error> {
        let resolver = match &target {
            Target::Literal(_) => None,
            Target::Name(..) => {
                let configuration = |e: &dyn std::fmt::Display| Error::Configuration(e.to_string());
                let mut builder = TokioResolver::builder_tokio().map_err(|e| configuration(&e))?;
                let options = builder.options_mut();
                // A new replica must be seen at the next look-up, not when a TTL ends.
                options.cache_size = 0;
                options.timeout = TIMEOUT;
                options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
                Some(builder.build().map_err(|e| configuration(&e))?)
            }
        };
        Ok(Self { target, resolver })
    }

    /// The replicas' addresses now.
    pub async fn lookup(&self) -> Result<BTreeSet<SocketAddr>, Error> {
        let (name, port, resolver) = match (&self.target, &self.resolver) {
            (Target::Literal(address), _) => return Ok(BTreeSet::from([*address])),
            (Target::Name(name, port), Some(resolver)) => (name, *port, resolver),
            (Target::Name(name, _), None) => {
                return Err(Error::Lookup {
                    name: name.clone(),
                    reason: "no resolver".to_owned(),
                });
            }
        };
        let answer = resolver
            .lookup_ip(name.as_str())
            .await
            .map_err(|error| Error::Lookup {
                name: name.clone(),
                reason: error.to_string(),
            })?;
        let addresses: Vec<IpAddr> = answer.iter().collect();
        Ok(addresses.into_iter().map(|ip| (ip, port).into()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_need_no_resolver() {
        for (text, expected) in [
            ("127.0.0.1:9443", "127.0.0.1:9443"),
            ("[::1]:9443", "[::1]:9443"),
            ("localhost:1", "127.0.0.1:1"),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target, Target::Literal(expected.parse().unwrap()));
        }
    }

    #[test]
    fn names_keep_their_port_and_nonsense_is_refused() {
        let target: Target = "ebpf-scaler-report.ebpf-scaler.svc:9443".parse().unwrap();
        assert_eq!(
            target,
            Target::Name("ebpf-scaler-report.ebpf-scaler.svc".into(), 9443)
        );
        for wrong in [
            "",
            "host",
            "host:",
            "host:99999",
            ":9443",
            "ho st:1",
            "https://host:1",
        ] {
            assert!(
                matches!(wrong.parse::<Target>(), Err(Error::Address(_))),
                "{wrong}"
            );
        }
    }
}
