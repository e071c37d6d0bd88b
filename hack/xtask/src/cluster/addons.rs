//! What runs inside a fresh cluster: CoreDNS. It never changes anything but the namespace kube-system.

use super::network::Plan;

/// The image that setup builds; the manifest names it, too.
pub const COREDNS_IMAGE: &str = "ebpf-scaler/coredns:local";

/// CoreDNS as cluster DNS, as YAML to apply.
pub fn coredns(plan: Plan) -> String {
    include_str!("../../../kubernetes/coredns/coredns.yaml")
        .replace("ADDRESS", &plan.dns_service().to_string())
}
