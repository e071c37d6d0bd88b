//! The command lines of the control plane's programs, which run in the first node's namespaces.
//! It never decides when they start.

use super::network::Plan;

/// A program and its arguments.
pub struct Program {
    pub name: &'static str,
    pub args: Vec<String>,
}

const PKI: &str = "/run/cluster/pki";
const ETCD: &str = "http://127.0.0.1:2379";

/// etcd without a disk sync for each write: a test cluster need not survive a power cut.
pub fn etcd() -> Program {
    Program {
        name: "etcd",
        args: vec![
            "--name=default".to_owned(),
            "--data-dir=/run/cluster/etcd".to_owned(),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
            format!("--listen-client-urls={ETCD}"),
            format!("--advertise-client-urls={ETCD}"),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        ],
    }
}

/// The API server, with all that aggregation needs.
pub fn apiserver(plan: Plan) -> Program {
    let address = plan.node(1);
    let services = plan.services();
    Program {
        name: "kube-apiserver",
        args: vec![
            format!("--etcd-servers={ETCD}"),
            format!("--advertise-address={address}"),
            "--secure-port=6443".to_owned(),
            format!("--service-cluster-ip-range={services}"),
            "--allow-privileged=true".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            format!("--client-ca-file={PKI}/ca.crt"),
            format!("--tls-cert-file={PKI}/apiserver.crt"),
            format!("--tls-private-key-file={PKI}/apiserver.key"),
            format!("--kubelet-certificate-authority={PKI}/ca.crt"),
            format!("--kubelet-client-certificate={PKI}/apiserver-kubelet-client.crt"),
            format!("--kubelet-client-key={PKI}/apiserver-kubelet-client.key"),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={PKI}/sa.pub"),
            format!("--service-account-signing-key-file={PKI}/sa.key"),
            format!("--requestheader-client-ca-file={PKI}/front-proxy-ca.crt"),
            "--requestheader-allowed-names=front-proxy-client".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            format!("--proxy-client-cert-file={PKI}/front-proxy-client.crt"),
            format!("--proxy-client-key-file={PKI}/front-proxy-client.key"),
            // The control plane sees no service addresses: it goes to the endpoints itself.
            "--enable-aggregator-routing=true".to_owned(),
        ],
    }
}

/// The controller manager; its defaults are what an HPA's user meets (a sync each 15 s).
pub fn controller_manager() -> Program {
    let kubeconfig = format!("{PKI}/kube-controller-manager.kubeconfig");
    Program {
        name: "kube-controller-manager",
        args: vec![
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            // Its default would make a folder in the host's /usr.
            "--flex-volume-plugin-dir=/run/node/volume-plugins".to_owned(),
            format!("--service-account-private-key-file={PKI}/sa.key"),
            format!("--root-ca-file={PKI}/ca.crt"),
            format!("--cluster-signing-cert-file={PKI}/ca.crt"),
            format!("--cluster-signing-key-file={PKI}/ca.key"),
        ],
    }
}

/// The scheduler.
pub fn scheduler() -> Program {
    let kubeconfig = format!("{PKI}/kube-scheduler.kubeconfig");
    Program {
        name: "kube-scheduler",
        args: vec![
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--leader-elect=false".to_owned(),
        ],
    }
}
