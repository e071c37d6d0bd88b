//! The configuration of a node's programs: containerd, kubelet and kube-proxy. All paths are those
//! inside the node's namespaces. It never starts anything.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{control_plane::Program, network::Plan};

/// The image that holds each pod's namespaces.
pub const PAUSE_IMAGE: &str = "ebpf-scaler/pause:local";

const SOCKET: &str = "/run/containerd/containerd.sock";

/// Where distributions put the CNI plugins.
const CNI_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// The programs, in the order in which they start.
pub fn programs(name: &str, plan: Plan, index: u8) -> [Program; 3] {
    [
        Program {
            name: "containerd",
            args: vec!["--config=/run/node/containerd.toml".to_owned()],
        },
        Program {
            name: "kubelet",
            args: vec![
                "--config=/run/node/kubelet.yaml".to_owned(),
                "--kubeconfig=/run/node/kubelet.kubeconfig".to_owned(),
                format!("--hostname-override={name}"),
                format!("--node-ip={}", plan.node(index)),
                // Its cAdvisor looks there for the containers' names; metrics-server needs them.
                format!("--containerd={SOCKET}"),
            ],
        },
        Program {
            name: "kube-proxy",
            args: vec![
                "--config=/run/node/kube-proxy.yaml".to_owned(),
                format!("--hostname-override={name}"),
            ],
        },
    ]
}

/// Writes the configuration files to the node's folder.
pub fn configure(folder: &Path, name: &str, plan: Plan, index: u8) -> anyhow::Result<()> {
    fs::create_dir_all(folder.join("cni"))?;
    fs::write(folder.join("containerd.toml"), containerd()?)?;
    write_json(&folder.join("cni/10-pods.conflist"), &cni(plan, index))?;
    write_json(&folder.join("kubelet.yaml"), &kubelet(name, plan))?;
    write_json(&folder.join("kube-proxy.yaml"), &kube_proxy(plan))?;
    // Nothing outside answers: a pod with the node's DNS gets an empty list, not the host's.
    Ok(fs::write(folder.join("resolv.conf"), "")?)
}

fn containerd() -> anyhow::Result<String> {
    let Some(cni) = CNI_FOLDERS
        .into_iter()
        .find(|folder| Path::new(folder).join("ptp").exists())
    else {
        bail!("no CNI plugins in any of {}", CNI_FOLDERS.join(", "));
    };
    Ok(format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Only CAP_SYS_RESOURCE may lower a score, and containers on CI machines lack it.
  restrict_oom_score_adj = true
  # A profile would stay in the kernel after the cluster.
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "/run/node/cni"
"#
    ))
}

/// Pods hang on cables of their own, not on a bridge: the kernel then routes every packet between
/// them, and services work even where bridged packets do not pass iptables.
fn cni(plan: Plan, index: u8) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni",
                    "ranges": [[{"subnet": plan.pods(index)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

fn kubelet(name: &str, plan: Plan) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "x509": {"clientCAFile": "/run/cluster/pki/ca.crt"},
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": format!("/run/cluster/pki/{name}.crt"),
        "tlsPrivateKeyFile": format!("/run/cluster/pki/{name}.key"),
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", cgroup_name(plan, name)),
        "clusterDomain": "cluster.local",
        "clusterDNS": [plan.dns_service()],
        "resolvConf": "/run/node/resolv.conf",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "maxPods": 250,
        "failSwapOn": false,
        "failCgroupV1": false,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": false,
        "oomScoreAdj": 0,
        // The machine's disk is not the cluster's business, and images cannot be pulled again.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    })
}

fn kube_proxy(plan: Plan) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": "/run/cluster/pki/kube-proxy.kubeconfig"},
        "clusterCIDR": plan.all_pods(),
        "oomScoreAdj": 0,
        // Limits of connection tracking belong to the host's namespace.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "iptables": {"minSyncPeriod": "100ms"},
    })
}

/// The control group under which a node's pods live. Clusters of two checkouts may have the same
/// name, but not the same addresses.
pub fn cgroup_name(plan: Plan, node: &str) -> String {
    format!("{}-{node}", plan.link())
}

fn write_json(path: &Path, value: &Value) -> anyhow::Result<()> {
    fs::write(path, serde_json::to_string_pretty(value)?)
        .with_context(|| format!("cannot write {}", path.display()))
}
