//! The certificates of a bench: a serving one, and the front proxy's.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::client::WantsClientCert;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The name that the serving certificate has.
pub const NAME: &str = "replica.bench";

/// A certificate with its key, PEM.
pub struct Leaf {
    pub certificate: String,
    pub key: String,
}

/// One CA for everything.
pub struct Pki {
    pub ca: String,
    pub serving: Leaf,
    pub proxy: Leaf,
}

impl Pki {
    /// New keys.
    pub fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let sign = |mut params: CertificateParams, usage| -> anyhow::Result<Leaf> {
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate()?;
            Ok(Leaf {
                certificate: params.signed_by(&key, &ca)?.pem(),
                key: key.serialize_pem(),
            })
        };
        let serving = CertificateParams::new(vec![NAME.to_owned()])?;
        let mut proxy = CertificateParams::default();
        proxy
            .distinguished_name
            .push(DnType::CommonName, "front-proxy-client");
        Ok(Self {
            ca: ca.pem(),
            serving: sign(serving, ExtendedKeyUsagePurpose::ServerAuth)?,
            proxy: sign(proxy, ExtendedKeyUsagePurpose::ClientAuth)?,
        })
    }

    /// TLS as the front proxy does it.
    pub fn front_proxy(&self) -> anyhow::Result<ClientConfig> {
        let mut config = self.verifying()?.with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(
                self.proxy.certificate.as_bytes(),
            )?],
            PrivateKeyDer::from_pem_slice(self.proxy.key.as_bytes())?,
        )?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// TLS of whoever has a token.
    pub fn anybody(&self) -> anyhow::Result<ClientConfig> {
        let mut config = self.verifying()?.with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    fn verifying(&self) -> anyhow::Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.as_bytes())?)?;
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        Ok(ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots))
    }
}
