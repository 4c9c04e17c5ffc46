//! Values as people type them.

use std::time::Duration;

use mirror_rollout::Share;

/// A share from 0 to 1, or in per cent.
pub(crate) fn share(typed: &str) -> Result<f64, String> {
    let (number, of) = match typed.strip_suffix('%') {
        Some(percent) => (percent.trim_end(), 100.0),
        None => (typed, 1.0),
    };
    match number.parse::<f64>() {
        Ok(number) if (0.0..=of).contains(&number) => Ok(number / of),
        Ok(number) if of == 1.0 && number > 1.0 && number <= 100.0 => Err(format!(
            "shares go from 0 to 1: for {number} % write {number}% or {}",
            number / 100.0
        )),
        _ => Err("write a share from 0 to 1, such as 0.25 or 25% for a quarter".to_owned()),
    }
}

/// The same, in steps of 0.0001.
pub(super) fn fine_share(typed: &str) -> Result<Share, String> {
    Ok(Share::try_from(share(typed)?)?)
}

/// A time, or how long ago.
pub(super) fn moment(typed: &str) -> Result<jiff::Timestamp, String> {
    let utc = |date: jiff::civil::DateTime| date.to_zoned(jiff::tz::TimeZone::UTC);
    let ago = |typed: &str| {
        let ago = humantime::parse_duration(typed).ok()?;
        jiff::Timestamp::now().checked_sub(ago).ok()
    };
    let time = typed.parse::<jiff::Timestamp>().ok();
    time.or_else(|| Some(utc(typed.parse().ok()?).ok()?.timestamp()))
        .or_else(|| ago(typed))
        .ok_or_else(|| {
            "write a time such as 2026-11-22T12:00:00Z, or how long ago, such as 2h".to_owned()
        })
}

/// How often something is shown.
pub(super) fn interval(typed: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_millis(100);
    let seconds = typed.parse::<u32>().ok();
    let seconds = seconds.map(|seconds| Duration::from_secs(seconds.into()));
    let time = seconds.or_else(|| humantime::parse_duration(typed).ok());
    time.filter(|time| *time >= LEAST)
        .ok_or_else(|| "write a time of 100ms or more, such as 2s".to_owned())
}

pub(super) fn service_name(typed: &str) -> Result<String, String> {
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !typed.is_empty() && typed.chars().all(fit) {
        return Ok(typed.to_owned());
    }
    Err("names of services are made of letters, digits, `.`, `_` and `-`".to_owned())
}
