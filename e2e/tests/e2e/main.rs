//! The stories that run on a real cluster, each in a namespace of its own. One binary, because linking it once is
//! faster; run with `cargo xtask test e2e`, one at a time, since they share the node's CPUs.

mod agent_restart;
mod apiserver_killed;
mod availability;
mod cert_manager;
mod custom_metrics;
mod external_api;
mod foreign;
mod hpa;
mod install;
mod invalid;
mod neighbour;
mod nodes;
mod operator_killed;
mod port_and_container;
mod probes_and_scrapes;
mod scale_network;
mod scale_request_rate;
mod scale_runqueue;
mod sidecar;
mod signals_api;
mod steady;
mod sum_bound;
mod tls_overlay;
mod uninstall;
