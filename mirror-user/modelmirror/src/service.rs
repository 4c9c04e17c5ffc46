//! The service that a command is about, where it names none.

use anyhow::bail;
use mirror_base::control::Client;

use crate::arguments::ServiceName;

impl ServiceName {
    /// The one that was named, else the only one that the daemon has.
    pub(crate) async fn resolve(self, client: &Client) -> anyhow::Result<String> {
        if let Some(name) = self.name {
            return Ok(name);
        }
        let status = client.status(None).await?;
        let names = status.services.into_iter().map(|service| service.name);
        only(names.collect())
    }
}

fn only(mut names: Vec<String>) -> anyhow::Result<String> {
    match names.len() {
        1 => Ok(names.remove(0)),
        0 => bail!("the daemon has no service: its config has no [[service]]"),
        count => bail!(
            "the daemon has {count} services: name one with --service: {}",
            names.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_service_is_meant() {
        let only = |names: &[&str]| only(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(only(&["sentiment"]).unwrap(), "sentiment");
        let why = only(&["a", "b"]).unwrap_err().to_string();
        assert!(why.contains("2 services") && why.ends_with("a, b"), "{why}");
        assert!(only(&[]).is_err());
    }
}
