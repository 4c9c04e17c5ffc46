//! What an order came to, in words.

use std::time::Duration;

use mirror_api::{CanaryChange, Change, Rest};

use crate::state::Overrides;

/// What a change of a mirror came to, for the one who made it.
pub(super) fn of_mirror(service: &str, change: Change, overrides: &Overrides) -> String {
    match change {
        Change::On => format!("{service}: mirroring is on"),
        Change::Off => format!("{service}: mirroring is off"),
        Change::Sample(share) if overrides.is_off() => {
            format!("{service}: the sample is {share}, once mirroring is on again")
        }
        Change::Sample(share) => format!("{service}: the sample is {share}"),
        Change::Clear => format!("{service}: as the config file says"),
    }
}

/// The same of a canary.
pub(super) fn of_canary(service: &str, change: CanaryChange, version: &str) -> Vec<String> {
    let first = match change {
        CanaryChange::Share(share) => {
            format!("{service}: {share} of new connections go to {version}")
        }
        CanaryChange::Off(_) | CanaryChange::ForceOff(_) => {
            format!("{service}: no new connections go to {version}")
        }
        CanaryChange::Clear => format!("{service}: the canary's share is as the config file says"),
    };
    let rest = match change {
        CanaryChange::Off(Rest::Drain(milliseconds)) => {
            let time = humantime::format_duration(Duration::from_millis(milliseconds));
            Some(format!("those that are open are reset in {time}"))
        }
        _ => None,
    };
    [first].into_iter().chain(rest).collect()
}
