//! The certificates, keys and kubeconfigs of a cluster's programs. They live as long as the cluster
//! and are never used outside it.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context;
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use super::network::Plan;

/// A certificate authority and where its files go.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    /// Makes one and writes NAME.crt and NAME.key.
    pub fn create(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        write_pair(folder, name, &certificate, &key)?;
        Ok(Self {
            folder: folder.to_owned(),
            issuer: Issuer::new(params, key),
            certificate,
        })
    }

    /// Issues a certificate for servers and clients and writes FILE.crt and FILE.key.
    pub fn issue(
        &self,
        file: &str,
        (name, group): (&str, Option<&str>),
        hosts: &[String],
    ) -> anyhow::Result<Identity> {
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        write_pair(&self.folder, file, &certificate, &key)?;
        Ok(Identity {
            certificate,
            key: key.serialize_pem(),
        })
    }
}

/// A client's certificate and key, in PEM.
pub struct Identity {
    certificate: String,
    key: String,
}

/// Everything that the control plane's programs need, written to `folder`; the kubeconfig of an
/// administrator goes to `admin`. Returns the authority, for the nodes.
pub fn create(folder: &Path, admin: &Path, plan: Plan, cluster: &str) -> anyhow::Result<Authority> {
    let ca = Authority::create(folder, "ca")?;
    ca.issue(
        "apiserver",
        ("kube-apiserver", None),
        &[
            "kubernetes".to_owned(),
            "kubernetes.default".to_owned(),
            "kubernetes.default.svc".to_owned(),
            "kubernetes.default.svc.cluster.local".to_owned(),
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            plan.api_service().to_string(),
            plan.node(1).to_string(),
        ],
    )?;
    let masters = Some("system:masters");
    ca.issue("apiserver-kubelet-client", ("kube-apiserver", masters), &[])?;
    let front_proxy = Authority::create(folder, "front-proxy-ca")?;
    front_proxy.issue("front-proxy-client", ("front-proxy-client", None), &[])?;

    let service_accounts = KeyPair::generate()?;
    write_secret(&folder.join("sa.key"), &service_accounts.serialize_pem())?;
    write_secret(&folder.join("sa.pub"), &service_accounts.public_key_pem())?;

    for name in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
        let identity = ca.issue(name, (&format!("system:{name}"), None), &[])?;
        let path = folder.join(format!("{name}.kubeconfig"));
        ca.write_kubeconfig(&path, plan, cluster, &identity)?;
    }
    let identity = ca.issue("admin", ("kubernetes-admin", masters), &[])?;
    ca.write_kubeconfig(admin, plan, cluster, &identity)?;
    Ok(ca)
}

impl Authority {
    /// A kubelet's serving certificate, and its kubeconfig in the node's folder.
    pub fn create_node(
        &self,
        folder: &Path,
        plan: Plan,
        cluster: &str,
        (node, index): (&str, u8),
    ) -> anyhow::Result<()> {
        let user = format!("system:node:{node}");
        let hosts = [node.to_owned(), plan.node(index).to_string()];
        let identity = self.issue(node, (&user, Some("system:nodes")), &hosts)?;
        self.write_kubeconfig(&folder.join("kubelet.kubeconfig"), plan, cluster, &identity)
    }

    /// A kubeconfig holds everything itself, so that it can be copied. JSON is YAML, too.
    fn write_kubeconfig(
        &self,
        path: &Path,
        plan: Plan,
        cluster: &str,
        identity: &Identity,
    ) -> anyhow::Result<()> {
        let data = |pem: &str| ByteString(pem.as_bytes().to_vec());
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": cluster, "cluster": {
                "server": format!("https://{}:6443", plan.node(1)),
                "certificate-authority-data": data(&self.certificate),
            }}],
            "users": [{"name": cluster, "user": {
                "client-certificate-data": data(&identity.certificate),
                "client-key-data": data(&identity.key),
            }}],
            "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": cluster}}],
            "current-context": cluster,
        });
        write_secret(path, &serde_json::to_string_pretty(&config)?)
    }
}

fn write_pair(folder: &Path, name: &str, certificate: &str, key: &KeyPair) -> anyhow::Result<()> {
    write_secret(&folder.join(format!("{name}.crt")), certificate)?;
    write_secret(&folder.join(format!("{name}.key")), &key.serialize_pem())
}

/// Only the owner may read it from its first moment on.
fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    // An older file would keep its mode.
    let _ = fs::remove_file(path);
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}
