//! What counts at certain times only: a raised minimum, a pause. Never reads a clock.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::HumanDuration;

/// A time at which `minReplicas` is higher.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// What it is called in messages; unique in the list.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// When it begins, as in cron: minute, hour, day of month, month, day of week; `0 8 * * MON-FRI` is 8 o'clock on
    /// working days. A time that a change of clocks leaves out does not come on that day, as with a CronJob.
    #[schemars(length(min = 9, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[-0-9A-Za-z*/,#]+( [-0-9A-Za-z*/,#]+){4}$')").message("spec.schedules[].start must have five fields as in cron: minute, hour, day of month, month, day of week, such as \"0 8 * * MON-FRI\""))]
    pub start: String,
    /// How long it lasts from each beginning.
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('744h')").message("spec.schedules[].duration must be from 1m to 744h"))]
    pub duration: HumanDuration,
    /// The time zone of `start`, by its IANA name, such as `Europe/Berlin`.
    #[serde(default = "utc")]
    #[schemars(
        length(min = 1, max = 64),
        regex(pattern = r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$")
    )]
    pub time_zone: String,
    /// Never fewer replicas than this meanwhile; below `spec.minReplicas` it changes nothing.
    #[schemars(range(min = 1, max = 10000))]
    pub min_replicas: i32,
}

fn utc() -> String {
    "UTC".into()
}

/// Stops scaling for some time.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Pause {
    /// Replicas to hold meanwhile, whatever the bounds; those that there are if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub replicas: Option<i32>,
    /// When it ends by itself; if it is left out, when `pause` is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}
