//! What of a spec depends on the time of day: schedules, as cron has them, and the end of a pause. Never reads a clock.

use cronexpr::{Crontab, MakeTimestamp};
use ebpf_scaler_crds::v1alpha1::{Pause, Schedule};
use ebpf_scaler_decide::{self as decide, Floor};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// Schedules that could be read.
#[derive(Clone, Debug, Default)]
pub struct Schedules {
    read: Vec<Read>,
    /// What could not be read and why, by field; such a schedule never counts.
    pub mistakes: Vec<String>,
}

#[derive(Clone, Debug)]
struct Read {
    name: String,
    start: Crontab,
    duration: SignedDuration,
    replicas: i32,
}

impl Schedules {
    /// Reads what the API server could not check: numbers out of range, names of time zones.
    #[must_use]
    pub fn read(given: &[Schedule]) -> Self {
        let mut all = Self::default();
        for (i, schedule) in given.iter().enumerate() {
            let zone = &schedule.time_zone;
            if k8s_openapi::jiff::tz::TimeZone::get(zone).is_err() {
                let text = format!("spec.schedules[{i}].timeZone: there is no time zone {zone:?}");
                all.mistakes.push(text);
                continue;
            }
            match cronexpr::parse_crontab(&format!("{} {zone}", schedule.start)) {
                Ok(start) => all.read.push(Read {
                    name: schedule.name.clone(),
                    start,
                    duration: SignedDuration::try_from(schedule.duration.get())
                        .unwrap_or(SignedDuration::MAX),
                    replicas: schedule.min_replicas,
                }),
                Err(error) => {
                    let error = error.to_string();
                    let line = error.lines().next_back().unwrap_or_default().trim();
                    let line = line.trim_start_matches(['^', ' ']);
                    all.mistakes.push(format!(
                        "spec.schedules[{i}].start: {:?} is no cron expression: {line}",
                        schedule.start
                    ));
                }
            }
        }
        all
    }

    /// The highest minimum of those that are on.
    #[must_use]
    pub fn floor(&self, now: Timestamp) -> Option<Floor> {
        let on = self.read.iter().filter(|s| s.is_on(now));
        // Of equal ones the first.
        let top = on.reduce(|a, b| if b.replicas > a.replicas { b } else { a })?;
        Some(Floor {
            replicas: top.replicas,
            name: top.name.clone(),
        })
    }
}

impl Read {
    /// Whether it has begun and not yet ended: its first beginning after `now - duration` is not after `now`.
    fn is_on(&self, now: Timestamp) -> bool {
        let Ok(from) = now.checked_sub(self.duration) else {
            return false;
        };
        self.start
            .find_next(MakeTimestamp(from))
            .is_ok_and(|start| start.timestamp() <= now)
    }
}

/// The pause that is on.
#[must_use]
pub fn pause(given: Option<&Pause>, now: Timestamp) -> Option<decide::Pause> {
    let pause = given.filter(|p| p.until.as_ref().is_none_or(|until| now < until.0))?;
    Some(decide::Pause {
        replicas: pause.replicas,
    })
}

#[cfg(test)]
mod tests {
    use ebpf_scaler_crds::HumanDuration;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn schedule(name: &str, start: &str, zone: &str, duration: &str, replicas: i32) -> Schedule {
        Schedule {
            name: name.into(),
            start: start.into(),
            duration: duration.parse::<HumanDuration>().unwrap(),
            time_zone: zone.into(),
            min_replicas: replicas,
        }
    }

    fn at(all: &Schedules, text: &str) -> Option<(i32, String)> {
        let floor = all.floor(text.parse().unwrap())?;
        Some((floor.replicas, floor.name))
    }

    #[test]
    fn a_schedule_is_on_from_its_beginning_for_its_duration() {
        let all = Schedules::read(&[schedule(
            "rush",
            "0 8 * * MON-FRI",
            "Europe/Berlin",
            "10h",
            9,
        )]);
        assert!(all.mistakes.is_empty(), "{:?}", all.mistakes);
        let rush = Some((9, "rush".to_owned()));
        // In summer Berlin is two hours ahead of UTC.
        assert_eq!(at(&all, "2026-07-01T05:59:59Z"), None);
        assert_eq!(at(&all, "2026-07-01T06:00:00Z"), rush);
        assert_eq!(at(&all, "2026-07-01T15:59:59Z"), rush);
        assert_eq!(at(&all, "2026-07-01T16:00:00Z"), None);
        // In winter one; and not on a Saturday.
        assert_eq!(at(&all, "2026-12-01T06:30:00Z"), None);
        assert_eq!(at(&all, "2026-12-01T07:30:00Z"), rush);
        assert_eq!(at(&all, "2026-12-05T07:30:00Z"), None);
    }

    #[test]
    fn a_night_shift_goes_on_after_midnight_and_the_highest_counts() {
        let all = Schedules::read(&[
            schedule("night", "0 22 * * *", "UTC", "8h", 3),
            schedule("batch", "30 1 1 * *", "UTC", "1h", 7),
        ]);
        assert_eq!(at(&all, "2026-03-02T05:00:00Z"), Some((3, "night".into())));
        assert_eq!(at(&all, "2026-03-01T02:00:00Z"), Some((7, "batch".into())));
        assert_eq!(at(&all, "2026-03-01T12:00:00Z"), None);
    }

    #[test]
    fn what_lasts_longer_than_it_takes_to_begin_again_is_always_on() {
        let all = Schedules::read(&[schedule("always", "* * * * *", "UTC", "1m", 2)]);
        for second in [0, 1, 30, 59] {
            let text = format!("2026-03-01T12:00:{second:02}Z");
            assert_eq!(at(&all, &text), Some((2, "always".into())), "{text}");
        }
    }

    #[test]
    fn a_time_that_a_change_of_clocks_leaves_out_is_left_out_as_by_a_cron_job() {
        // In Berlin, 02:30 does not exist on 29 March 2026.
        let all = Schedules::read(&[schedule("early", "30 2 * * *", "Europe/Berlin", "2h", 2)]);
        assert!(at(&all, "2026-03-28T01:45:00Z").is_some());
        assert!(at(&all, "2026-03-29T01:45:00Z").is_none());
        assert!(at(&all, "2026-03-30T01:45:00Z").is_some());
    }

    #[test]
    fn mistakes_name_the_field_and_stop_nothing_else() {
        let all = Schedules::read(&[
            schedule("a", "0 25 * * *", "UTC", "1h", 2),
            schedule("b", "0 8 * * *", "Europe/Atlantis", "1h", 2),
            schedule("c", "* * * * *", "UTC", "1m", 4),
        ]);
        assert_eq!(all.mistakes.len(), 2, "{:?}", all.mistakes);
        assert!(
            all.mistakes[0].starts_with("spec.schedules[0].start: \"0 25 * * *\""),
            "{:?}",
            all.mistakes
        );
        assert!(
            all.mistakes[1].contains("[1].timeZone: there is no time zone \"Europe/Atlantis\""),
            "{:?}",
            all.mistakes
        );
        assert_eq!(at(&all, "2026-03-01T12:00:00Z"), Some((4, "c".into())));
    }

    #[test]
    fn a_pause_ends_when_it_says() {
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let until = |text: &str| Pause {
            replicas: Some(3),
            until: Some(Time(text.parse().unwrap())),
        };
        assert_eq!(pause(None, now), None);
        let held = Some(decide::Pause { replicas: Some(3) });
        assert_eq!(pause(Some(&until("2026-03-01T12:00:01Z")), now), held);
        assert_eq!(pause(Some(&until("2026-03-01T12:00:00Z")), now), None);
        let open = Pause::default();
        assert_eq!(
            pause(Some(&open), now),
            Some(decide::Pause { replicas: None })
        );
    }
}
