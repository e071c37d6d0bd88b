//! Makes and reads certificates. Never decides when (see `plan`) and never talks to a cluster.

use std::{sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use x509_parser::time::ASN1Time;

use super::plan::{CaCert, Unix};

/// Clocks of nodes differ; a certificate is valid from a little before it was made.
const SKEW: i64 = 300;

/// What went wrong with a certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Making one.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// Reading one.
    #[error("cannot read a certificate: {0}")]
    Read(String),
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// Its private key (PKCS#8).
    pub key: String,
}

fn validity(params: &mut CertificateParams, begin: Unix, end: Unix) -> Result<(), Error> {
    let at = |t| {
        ASN1Time::from_timestamp(t)
            .map(|t| t.to_datetime())
            .map_err(|e| Error::Read(e.to_string()))
    };
    params.not_before = at(begin)?;
    params.not_after = at(end)?;
    Ok(())
}

/// Makes a CA that lives `life` seconds.
///
/// # Errors
/// When the time is not one that a certificate can hold, or there is no randomness.
pub fn make_ca(now: Unix, life: i64) -> Result<Pair, Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    // Two CAs of ours in one bundle must differ by name, or verifiers try the wrong one.
    params
        .distinguished_name
        .push(DnType::CommonName, format!("ebpf-scaler CA {now}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    validity(&mut params, now - SKEW, now + life)?;
    let cert = params.self_signed(&key)?;
    Ok(Pair {
        cert: cert.pem(),
        key: key.serialize_pem(),
    })
}

/// Issues a serving certificate for `names`, which never outlives its CA.
///
/// # Errors
/// When the CA does not parse or a name is not a DNS name.
pub fn issue(ca: &Pair, names: &[String], now: Unix, life: i64) -> Result<Pair, Error> {
    let issuer = Issuer::from_ca_cert_pem(&ca.cert, KeyPair::from_pem(&ca.key)?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.to_vec())?;
    let name = names.first().cloned().unwrap_or_default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    // X.520 bounds a common name to 64 characters; verifiers read only the alternative names.
    params.distinguished_name.push(
        DnType::CommonName,
        name.chars().take(64).collect::<String>(),
    );
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let (_, ca_end) = times(&ca.cert)?;
    validity(&mut params, now - SKEW, (now + life).min(ca_end))?;
    let cert = params.signed_by(&key, &issuer)?;
    Ok(Pair {
        cert: cert.pem(),
        key: key.serialize_pem(),
    })
}

fn der(pem: &str) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| Error::Read(e.to_string()))
}

/// Begin and end of the first certificate's validity, without the allowance for clock skew at its
/// begin: the time that it was made.
///
/// # Errors
/// When it does not parse.
pub fn times(pem: &str) -> Result<(Unix, Unix), Error> {
    let der = der(pem)?;
    let (_, cert) =
        x509_parser::parse_x509_certificate(&der).map_err(|e| Error::Read(e.to_string()))?;
    let validity = cert.validity();
    Ok((
        validity.not_before.timestamp() + SKEW,
        validity.not_after.timestamp(),
    ))
}

/// Whether a key belongs to a certificate.
#[must_use]
pub fn fits(pair: &Pair) -> bool {
    let Ok(cert) = der(&pair.cert) else {
        return false;
    };
    let Ok(key) = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()) else {
        return false;
    };
    let provider = rustls::crypto::ring::default_provider();
    rustls::sign::CertifiedKey::from_der(vec![cert], key, &provider).is_ok()
}

/// Whether a client that trusts `roots` would accept `cert` under every one of `names` at `now`.
#[must_use]
pub fn accepted(cert: &str, roots: &str, names: &[String], now: Unix) -> bool {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()).flatten() {
        // One bad certificate in a bundle does not spoil the others.
        let _ = store.add(root);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let Ok(verifier) =
        WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build()
    else {
        return false;
    };
    let Ok(cert) = der(cert) else { return false };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now.unsigned_abs()));
    names.iter().all(|name| {
        ServerName::try_from(name.clone()).is_ok_and(|name| {
            verifier
                .verify_server_cert(&cert, &[], &name, &[], now)
                .is_ok()
        })
    })
}

/// The certificates of a bundle that are still valid, each with the time given as published.
#[must_use]
pub fn split(bundle: &str, published: Unix, now: Unix) -> Vec<CaCert> {
    const END: &str = "-----END CERTIFICATE-----";
    bundle
        .split_inclusive(END)
        .filter(|part| part.contains(END))
        .filter_map(|part| {
            let pem = format!("{}\n", part.trim());
            let (not_before, not_after) = times(&pem).ok()?;
            (not_after > now).then_some(CaCert {
                pem,
                not_before,
                not_after,
                published,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_issue_is_accepted_by_who_trusts_our_ca_and_by_nobody_else() {
        let now = 1_800_000_000;
        let names = vec!["a.b.svc".to_owned(), "localhost".to_owned()];
        let ca = make_ca(now, 1000).unwrap();
        let other = make_ca(now + 1, 1000).unwrap();
        let leaf = issue(&ca, &names, now, 5000).unwrap();
        assert!(fits(&leaf));
        assert!(accepted(&leaf.cert, &ca.cert, &names, now));
        assert!(accepted(
            &leaf.cert,
            &format!("{}{}", other.cert, ca.cert),
            &names,
            now
        ));
        assert!(!accepted(&leaf.cert, &other.cert, &names, now));
        assert!(!accepted(&leaf.cert, &ca.cert, &["c".to_owned()], now));
        assert!(!accepted(&leaf.cert, &ca.cert, &names, now + 1001));
        // It ends with its CA.
        assert_eq!(times(&leaf.cert).unwrap(), (now, now + 1000));
        assert!(!fits(&Pair {
            cert: leaf.cert,
            key: ca.key
        }));
    }

    #[test]
    fn a_bundle_splits_into_what_is_still_valid() {
        let old = make_ca(0, 1000).unwrap();
        let new = make_ca(500, 1000).unwrap();
        let both = format!("{}{}", old.cert, new.cert);
        assert_eq!(split(&both, 7, 900).len(), 2);
        let left = split(&both, 7, 1200);
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].pem.trim(), new.cert.trim());
    }
}
