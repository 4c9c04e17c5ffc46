//! Where a config is found that nobody names.

use std::path::{Path, PathBuf};

use crate::arguments::ConfigFile;

/// Where configs are looked for.
pub(crate) const FOLDER: &str = "/etc/modelmirror";

/// The inference node's file.
const NODE: &str = "node.toml";

/// The shadow host's.
const SHADOW: &str = "shadow.toml";

/// There is none where one was looked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoConfig {
    #[error("no config: there is no {}; name one with --config or MODELMIRROR_CONFIG, or begin with `modelmirror config default --for {kind}`", looked.display())]
    There { looked: PathBuf, kind: &'static str },
    #[error("no config: there is neither {NODE} nor {SHADOW} in {}; name one with --config or MODELMIRROR_CONFIG, or begin with `modelmirror config default`", folder.display())]
    Neither { folder: PathBuf },
    #[error("both {NODE} and {SHADOW} are in {}: name one with --config", folder.display())]
    Both { folder: PathBuf },
}

impl ConfigFile {
    /// What was typed, or stands in the environment.
    pub(crate) fn named(&self) -> Option<&Path> {
        let named = self.config.as_deref();
        named.filter(|file| !file.as_os_str().is_empty())
    }

    /// The node's file.
    pub(crate) fn node(&self) -> Result<PathBuf, NoConfig> {
        self.of_host(Path::new(FOLDER), NODE, "node")
    }

    /// The shadow host's file.
    pub(crate) fn shadow(&self) -> Result<PathBuf, NoConfig> {
        self.of_host(Path::new(FOLDER), SHADOW, "shadow")
    }

    /// Whichever is there.
    pub(crate) fn either(&self) -> Result<PathBuf, NoConfig> {
        self.one_of(Path::new(FOLDER))
    }

    /// The node's file, if there is one.
    pub(crate) fn node_if_any(&self) -> Option<PathBuf> {
        self.node().ok()
    }

    /// The shadow host's file, if there is one.
    pub(crate) fn shadow_if_any(&self) -> Option<PathBuf> {
        self.shadow().ok()
    }

    fn of_host(&self, folder: &Path, name: &str, kind: &'static str) -> Result<PathBuf, NoConfig> {
        if let Some(named) = self.named() {
            return Ok(named.to_owned());
        }
        let looked = folder.join(name);
        match is_there(&looked) {
            true => Ok(looked),
            false => Err(NoConfig::There { looked, kind }),
        }
    }

    fn one_of(&self, folder: &Path) -> Result<PathBuf, NoConfig> {
        if let Some(named) = self.named() {
            return Ok(named.to_owned());
        }
        let [node, shadow] = [NODE, SHADOW].map(|name| folder.join(name));
        let folder = folder.to_owned();
        match (is_there(&node), is_there(&shadow)) {
            (true, true) => Err(NoConfig::Both { folder }),
            (true, false) => Ok(node),
            (false, true) => Ok(shadow),
            (false, false) => Err(NoConfig::Neither { folder }),
        }
    }
}

/// One that cannot be read is there all the same: reading it says why.
fn is_there(file: &Path) -> bool {
    match file.symlink_metadata() {
        Ok(_) => true,
        Err(why) => why.kind() != std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_is_there_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let unnamed = ConfigFile { config: None };
        let said = |error: NoConfig| error.to_string();
        let none = said(unnamed.one_of(folder).unwrap_err());
        let shown = folder.display().to_string();
        assert!(none.contains(&shown) && none.contains(NODE), "{none}");
        let none = said(unnamed.of_host(folder, SHADOW, "shadow").unwrap_err());
        assert!(none.contains(&format!("no {shown}/{SHADOW}")), "{none}");

        std::fs::write(folder.join(SHADOW), "").unwrap();
        assert_eq!(unnamed.one_of(folder).unwrap(), folder.join(SHADOW));
        assert_eq!(
            unnamed.of_host(folder, SHADOW, "shadow").unwrap(),
            folder.join(SHADOW)
        );
        std::fs::write(folder.join(NODE), "").unwrap();
        let both = said(unnamed.one_of(folder).unwrap_err());
        assert!(both.contains("name one with --config"), "{both}");

        let named = ConfigFile {
            config: Some("a.toml".into()),
        };
        assert_eq!(named.one_of(folder).unwrap(), Path::new("a.toml"));
        let empty = ConfigFile {
            config: Some("".into()),
        };
        assert_eq!(empty.named(), None);
    }
}
