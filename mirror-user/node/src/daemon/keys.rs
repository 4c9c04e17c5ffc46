//! This node's key, and how agents are spoken to by it.

use std::path::PathBuf;
use std::sync::Arc;

use super::agents::Agent;
use super::sender::{Door, Target};
use crate::config::Node;
use mirror_base::transport::frame::ALPN_TAP;
use mirror_base::transport::keys::{PrivateKey, PublicKey};
use mirror_base::transport::tls;

/// The node's key; nothing where every agent is spoken to in clear text, and none is there.
#[derive(Debug)]
pub(super) struct Keys {
    file: PathBuf,
    own: Option<PrivateKey>,
}

impl Keys {
    /// Reads the key.
    ///
    /// # Errors
    /// When it cannot be read and some agent asks for it.
    pub(super) fn read(config: &Node) -> anyhow::Result<Self> {
        let file = config.key_file.clone();
        let mut mirrors = config
            .services
            .iter()
            .filter_map(|service| service.mirror.as_ref());
        let own = match PrivateKey::read(&file) {
            Ok(key) => Some(key),
            Err(error) if mirrors.any(|mirror| !mirror.insecure) => return Err(error.into()),
            Err(_) => None,
        };
        Ok(Self { file, own })
    }

    /// No key: agents are spoken to in clear text.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self {
            file: PathBuf::new(),
            own: None,
        }
    }

    /// Whom to keep a connection to.
    pub(super) fn target(&self, agent: &Agent, boot: u64) -> Target {
        let access = &agent.access;
        Target {
            number: agent.number,
            agent: access.address.clone(),
            door: access.key.map_or(Door::Clear, |key| self.door(key)),
            transport: access.transport,
            ring: agent.ring.as_ref().map(Arc::clone),
            mac_key: agent.mac_key,
            boot: agent.life(boot),
        }
    }

    fn door(&self, agent: PublicKey) -> Door {
        let Some(own) = &self.own else {
            let file = self.file.display();
            return Door::Closed(format!(
                "{file} held no key when the daemon started: run `modelmirror keys new` and restart it"
            ));
        };
        match tls::client_config(own, agent, ALPN_TAP) {
            Ok(config) => Door::Keys {
                config,
                own: own.public(),
            },
            Err(error) => Door::Closed(error.to_string()),
        }
    }
}
