//! What the programs and we ourselves could not do, hold and cost, as named values. It only reads.

use std::mem::offset_of;

use ebpf_scaler_common::record::{Control, Cost, Program, SAMPLED, Stat};

use super::Probes;

/// What the programs could not do, and what they hold; each is cumulative unless its name begins with `live_`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Name and value, in a stable order. Names are metric suffixes: lower case, underscores.
    pub values: Vec<(&'static str, u64)>,
    /// What each program costs, estimated from the runs that it timed.
    pub programs: Vec<ProgramCost>,
}

/// An estimate: what was timed, times how seldom it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProgramCost {
    /// The program's name in the object.
    pub program: &'static str,
    /// How often it ran, to within the sampling interval on each CPU.
    pub runs: u64,
    /// How long it ran in all.
    pub seconds: f64,
}

impl Probes {
    /// Drops, desyncs, lost races, full maps, unknown cgroups, live socket storages.
    pub fn statistics(&self) -> Statistics {
        let maps = &self.kernel.maps;
        let of_kernel = Stat::ALL
            .iter()
            .map(|(stat, name)| (*name, maps.statistics.word(*stat as u32, 0)));
        let ours = [
            (
                "live_socket_storages",
                maps.control.word(0, offset_of!(Control, live_flows)),
            ),
            (
                "live_http2_storages",
                maps.control.word(0, offset_of!(Control, live_http2)),
            ),
            ("live_slots", u64::from(self.pool.held())),
            ("live_part_slots", u64::from(self.pool.parts())),
            ("slots_full", self.slots_full),
            ("quarantine_forgotten_cgroups", self.forgotten_cgroups),
            ("quarantine_forgotten_requests", self.forgotten_requests),
        ];
        Statistics {
            values: of_kernel
                .chain(ours)
                .chain(self.kernel.tls_statistics().statistics())
                .collect(),
            programs: self.costs(),
        }
    }

    fn costs(&self) -> Vec<ProgramCost> {
        let costs = &self.kernel.maps.costs;
        let of = |(program, name): &(Program, &'static str)| {
            let word = |offset| costs.word(*program as u32, offset);
            ProgramCost {
                program: name,
                runs: word(offset_of!(Cost, runs)) * SAMPLED,
                seconds: (word(offset_of!(Cost, nanos)) * SAMPLED) as f64 / 1e9,
            }
        };
        Program::ALL.iter().map(of).collect()
    }
}
