//! TLS whose certificate and trust can change under live connections: the serving certificate of both
//! ports, and the check of client certificates against CAs that are known only at the time of a request.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::sync::SetOnce;

/// Why a certificate or CA can not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not PEM, or not what is expected in it.
    #[error("can not read the PEM of {what}: {source}")]
    Pem {
        /// What was to be read
        what: &'static str,
        /// What the parser says
        source: rustls_pki_types::pem::Error,
    },
    /// There is none in it.
    #[error("{0} holds no certificate")]
    Empty(&'static str),
    /// The key does not fit, or rustls can not use it.
    #[error("can not use the certificate: {0}")]
    Unusable(#[from] rustls::Error),
    /// A CA that can not verify anything.
    #[error("can not verify client certificates with this CA: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The serving certificate, swapped whole.
#[derive(Debug, Default)]
pub struct Serving {
    certificate: ArcSwapOption<CertifiedKey>,
    given: SetOnce<()>,
}

impl Serving {
    /// From now on handshakes get this certificate; what is connected stays.
    pub fn set(&self, cert_pem: &[u8], key_pem: &[u8]) -> Result<(), Error> {
        let chain = certificates("the serving certificate", cert_pem)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|source| Error::Pem {
            what: "the serving key",
            source,
        })?;
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())?;
        self.certificate.store(Some(Arc::new(certified)));
        // The first one is news, others follow it.
        let _ = self.given.set(());
        Ok(())
    }

    /// Waits until there is a certificate.
    pub async fn given(&self) {
        self.given.wait().await;
    }

    /// Whether there is a certificate.
    pub fn is_set(&self) -> bool {
        self.certificate.load().is_some()
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificate.load_full()
    }
}

/// How a port does TLS: 1.3 only. Everybody who has reason to connect speaks it (kube-apiserver since long before the
/// oldest Kubernetes that we run on, our own agents and operator), and what 1.2 still allows needs no thought.
pub fn server_config(
    serving: Arc<Serving>,
    ask_for_client_certificate: bool,
    protocols: &[&str],
) -> Result<ServerConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = if ask_for_client_certificate {
        builder.with_client_cert_verifier(Arc::new(CheckedLater(provider)))
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_cert_resolver(serving);
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(config)
}

/// Takes any client certificate whose key the client has; who signed it is checked for each request, because
/// the CAs may change while a connection lives, and because a bearer token may come with it.
#[derive(Debug)]
struct CheckedLater(Arc<CryptoProvider>);

impl ClientCertVerifier for CheckedLater {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// CAs that sign client certificates.
#[derive(Debug)]
pub struct ClientCa(Arc<dyn ClientCertVerifier>);

impl ClientCa {
    /// From a bundle in PEM.
    pub fn from_pem(what: &'static str, pem: &[u8]) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(what, pem)? {
            roots.add(certificate)?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Self(verifier))
    }

    /// Whether one of the CAs signed the chain for client use and it is valid now.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        self.0
            .verify_client_cert(leaf, intermediates, UnixTime::now())
            .map(|_| ())
    }
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| Error::Pem { what, source })?;
    if chain.is_empty() {
        return Err(Error::Empty(what));
    }
    Ok(chain)
}
