//! Whom a rollout calls over HTTP: an address that may hold a key, in its path, its query or before the
//! `@`. Whole it goes into the call alone; everything else gets scheme and host.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Plan;

/// Stands for what is not shown.
const HIDDEN: &str = "/…";

/// An address. `Display`, `Debug` and `Serialize` leave out what may be secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(String);

impl Endpoint {
    /// The whole address, for the call; nothing where only what is shown of it is known.
    pub fn whole(&self) -> Option<&str> {
        (!self.0.ends_with(HIDDEN)).then_some(&self.0)
    }

    /// Scheme, and host with port.
    fn parts(&self) -> (&str, &str) {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("", ""));
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let authority = &rest[..end];
        let host = authority.rsplit_once('@').map_or(authority, |(_, at)| at);
        (scheme, host)
    }
}

impl From<String> for Endpoint {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl From<&str> for Endpoint {
    fn from(url: &str) -> Self {
        Self(url.to_owned())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.parts().1)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let (scheme, host) = self.parts();
        let shown = format!("{scheme}://{host}");
        match self.0.strip_prefix(&shown) {
            Some("" | "/") => to.serialize_str(&self.0),
            _ => to.collect_str(&format_args!("{shown}{HIDDEN}")),
        }
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(Self)
    }
}

/// The whole addresses of a plan, for those who carry it out.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prometheus: Option<String>,
    #[serde(default)]
    hooks: Vec<String>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

impl Plan {
    /// What is not shown of its addresses; nothing where there are none.
    pub fn secrets(&self) -> Option<Secrets> {
        let called = self.prometheus.is_some() || !self.hooks.is_empty();
        called.then(|| Secrets {
            prometheus: self.prometheus.as_ref().map(|base| base.0.clone()),
            hooks: self.hooks.iter().map(|hook| hook.url.0.clone()).collect(),
        })
    }

    /// Puts back what a record of this plan leaves out.
    pub fn reveal(&mut self, secrets: &Secrets) {
        let bases = self.prometheus.iter_mut().zip(&secrets.prometheus);
        let hooks = self.hooks.iter_mut().map(|hook| &mut hook.url);
        for (shown, whole) in bases.chain(hooks.zip(&secrets.hooks)) {
            whole.clone_into(&mut shown.0);
        }
    }

    /// Writes an optional plan with its whole addresses: on its way from the command line to the
    /// daemon, and nowhere else.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize_whole<S: Serializer>(plan: &Option<Self>, to: S) -> Result<S::Ok, S::Error> {
        let Some(plan) = plan else {
            return to.serialize_none();
        };
        let mut whole = serde_json::to_value(plan).map_err(serde::ser::Error::custom)?;
        if let Some(base) = &plan.prometheus {
            whole["prometheus"] = base.0.as_str().into();
        }
        for (index, hook) in plan.hooks.iter().enumerate() {
            whole["hooks"][index]["url"] = hook.url.0.as_str().into();
        }
        whole.serialize(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_is_shown() {
        let check = |url: &str, display: &str, json: &str| {
            let endpoint = Endpoint::from(url);
            assert_eq!(endpoint.to_string(), display);
            assert_eq!(format!("{endpoint:?}"), format!("Endpoint({display})"));
            let said = serde_json::to_string(&endpoint).unwrap();
            assert_eq!(said, format!("{json:?}"));
            let read: Endpoint = serde_json::from_str(&said).unwrap();
            assert_eq!(read.to_string(), display);
            assert_eq!(read.whole().is_some(), url == json, "{url}");
            assert_eq!(endpoint.whole(), Some(url));
        };
        check("http://a:9090", "a:9090", "http://a:9090");
        check("https://a/", "a", "https://a/");
        check("https://a/T0/hush", "a", "https://a/…");
        check("https://a?key=hush", "a", "https://a/…");
        check("https://me:hush@[::1]:80", "[::1]:80", "https://[::1]:80/…");
        check("https://me:hu@sh@a/x@y", "a", "https://a/…");
    }

    #[test]
    fn what_a_record_leaves_out_is_put_back() {
        let mut plan = Plan::default();
        assert_eq!(plan.secrets(), None);
        plan.prometheus = Some("http://me:hush@a".into());
        let text = serde_json::to_string(&plan).unwrap();
        assert!(!text.contains("hush"), "{text}");
        let mut read: Plan = serde_json::from_str(&text).unwrap();
        assert_ne!(read, plan);
        read.reveal(&plan.secrets().unwrap());
        assert_eq!(read, plan);
    }
}
