//! What the log says of those who send: each thing once.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;

use mirror_api::tap_report::ServiceReport;

use crate::config;

/// Things that are said, at most: whoever likes can send from many addresses.
const MAX_NOTICES: usize = 256;

/// Something that keeps copies from being compared, and that one of the two configs would cure.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Notice {
    /// Somebody sends who is not listened to.
    NotAllowed(IpAddr),
    /// A tap copies a service that is not known here.
    UnknownService { tap: String, id: u32, name: String },
    /// A tap means another service by the same id.
    OtherName {
        tap: String,
        id: u32,
        name: String,
        ours: String,
    },
    /// There is no memory for what a tap says of its services.
    NoMemory { tap: String },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllowed(peer) => {
                write!(f, "what {peer} sends is dropped: it is not in `allow`")
            }
            Self::UnknownService { tap, id, name } => write!(
                f,
                "{tap} copies {name:?}, id {id}, and no service here has that id: its copies are dropped"
            ),
            Self::OtherName {
                tap,
                id,
                name,
                ours,
            } => write!(f, "{tap} calls service {id} {name:?}, here it is {ours:?}"),
            Self::NoMemory { tap } => write!(
                f,
                "no memory for what {tap} says of its services; their versions are not known: raise memory"
            ),
        }
    }
}

/// What was said already.
#[derive(Debug, Default)]
pub(super) struct Notices {
    services: HashMap<u32, String>,
    said: BTreeSet<Notice>,
}

impl Notices {
    pub(super) fn new(services: &[config::ShadowService]) -> Self {
        let services = services.iter();
        Self {
            services: services.map(|s| (s.id, s.name.clone())).collect(),
            said: BTreeSet::new(),
        }
    }

    /// Somebody who is not listened to has sent something.
    pub(super) fn not_allowed(&mut self, peer: IpAddr) {
        self.say(Notice::NotAllowed(peer));
    }

    /// What a tap says of its services is left out.
    pub(super) fn no_memory(&mut self, tap: &str) {
        let tap = tap.to_owned();
        self.say(Notice::NoMemory { tap });
    }

    /// Whether the config has a service of this id.
    pub(super) fn knows(&self, id: u32) -> bool {
        self.services.contains_key(&id)
    }

    /// A tap has named its services.
    pub(super) fn services(&mut self, tap: &str, reports: &[ServiceReport]) {
        if self.said.len() >= MAX_NOTICES {
            return;
        }
        for report in reports {
            if let Some(notice) = self.service(tap, report) {
                self.say(notice);
            }
        }
    }

    fn service(&self, tap: &str, report: &ServiceReport) -> Option<Notice> {
        let (tap, id, name) = (tap.to_owned(), report.id, report.name.clone());
        match self.services.get(&id) {
            Some(ours) if *ours == name => None,
            Some(ours) => Some(Notice::OtherName {
                tap,
                id,
                name,
                ours: ours.clone(),
            }),
            None => report
                .mirror
                .then_some(Notice::UnknownService { tap, id, name }),
        }
    }

    fn say(&mut self, notice: Notice) {
        if self.said.contains(&notice) || self.said.len() >= MAX_NOTICES {
            return;
        }
        tracing::warn!("{notice}");
        self.said.insert(notice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn services_that_do_not_fit_are_named() {
        let target = "127.0.0.1:8000".parse().unwrap();
        let notices = Notices::new(&[fixtures::service(101, target)]);
        let check = |id, name: &str, mirror, expected: Option<&str>| {
            let report = ServiceReport {
                id,
                name: name.into(),
                mirror,
                ..ServiceReport::default()
            };
            let notice = notices.service("10.0.0.5", &report);
            let words = notice.map(|notice| notice.to_string());
            assert_eq!(words.as_deref(), expected);
        };
        check(101, "service-101", true, None);
        check(
            101,
            "fraud",
            true,
            Some(r#"10.0.0.5 calls service 101 "fraud", here it is "service-101""#),
        );
        check(
            102,
            "fraud",
            true,
            Some(
                r#"10.0.0.5 copies "fraud", id 102, and no service here has that id: its copies are dropped"#,
            ),
        );
        check(102, "fraud", false, None);
    }

    #[test]
    fn each_thing_is_said_once_and_not_without_end() {
        let mut notices = Notices::default();
        for last in 0..=u16::MAX {
            let [high, low] = last.to_be_bytes();
            notices.not_allowed([10, 0, high, low].into());
            notices.not_allowed([10, 0, 0, 0].into());
        }
        assert_eq!(notices.said.len(), MAX_NOTICES);
    }
}
