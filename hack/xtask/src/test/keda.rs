//! The tier beside KEDA: builds its programs and loads them into a cluster of one node. Not in `make test`, because
//! building KEDA takes longer than all of that.

use std::process::Command;

use super::{KEDA, cargo_test, kubeconfig};
use crate::{
    architecture::Architecture,
    cluster::{Cluster, cache},
    generate::root,
    image::{self, Image, archive},
    steps::{Steps, xtask},
};

const CLUSTER: &str = "test-keda";
/// Image and program, as the overlay in hack/kubernetes/keda names them.
const IMAGES: [(&str, &str); 2] = [
    ("ebpf-scaler/keda:local", "keda"),
    ("ebpf-scaler/keda-adapter:local", "keda-adapter"),
];

/// Runs the tier; with `keep` the cluster stays.
pub fn run(steps: &mut Steps, keep: bool) -> anyhow::Result<()> {
    let result = on_cluster(steps);
    if keep {
        println!("    the cluster {CLUSTER} stays up: cargo xtask cluster down --name {CLUSTER}");
        return result;
    }
    let down = steps.run(
        "cluster down",
        &mut xtask(&["cluster", "down", "--name", CLUSTER])?,
    );
    result?;
    down
}

fn on_cluster(steps: &mut Steps) -> anyhow::Result<()> {
    steps.run(
        "build KEDA",
        Command::new("bash").arg(root().join("hack/setup/keda.sh")),
    )?;
    steps.run(
        "cluster up",
        &mut xtask(&["cluster", "up", "--name", CLUSTER, "--nodes", "1"])?,
    )?;
    steps.run(
        "build and load the images",
        &mut xtask(&["image", "--cluster", CLUSTER])?,
    )?;
    let keda = cache().join("keda");
    steps.step("load KEDA's images", || {
        let cluster = Cluster::open(CLUSTER)?;
        for (name, program) in IMAGES {
            let image = Image {
                name,
                binary: &keda.join("bin").join(program),
                program,
                user: image::NONROOT,
                architecture: Architecture::own()?,
            };
            cluster.load_image(&archive(&image, &keda.join("images"))?)?;
        }
        Ok(())
    })?;
    let mut command = cargo_test(&[KEDA.to_owned()]);
    command
        .args(["--", "--nocapture"])
        .env("EBPF_SCALER_E2E_KUBECONFIG", kubeconfig(CLUSTER)?)
        .env("EBPF_SCALER_E2E_KEDA", keda.join("overlay"));
    steps.run("beside KEDA", &mut command)
}
