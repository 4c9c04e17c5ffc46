//! `modelmirror keys`: this host's key, and what the other host writes into its config.

use std::fmt;
use std::net::IpAddr;
use std::path::{self, Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::print::Printer;
use mirror_base::config::{self, KEY_FILE};
use mirror_base::transport::keys::{Existing, PrivateKey, PublicKey};

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Make this host's key, and print its public half and the lines for the other host's config
    #[command(after_help = "Examples:
  modelmirror keys new")]
    New {
        #[command(flatten)]
        file: KeyFile,
        /// Replace a key that is already there: the other host's config must then be changed as well
        #[arg(long)]
        replace: bool,
    },
    /// Print the public half of this host's key, and the lines for the other host's config
    #[command(after_help = "Examples:
  modelmirror keys show
  modelmirror keys show -o json | jq -r .public_key")]
    Show {
        #[command(flatten)]
        file: KeyFile,
    },
}

#[derive(Debug, Args)]
pub(super) struct KeyFile {
    /// The file of the private key (`key_file` in the config)
    #[arg(long = "key-file", value_name = "PATH", default_value = KEY_FILE)]
    path: PathBuf,
}

/// A key as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    public_key: PublicKey,
    key_file: PathBuf,
    /// What the other host may call this one.
    name: String,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, name, file) = (&self.public_key, &self.name, self.key_file.display());
        writeln!(f, "public key   {key}")?;
        writeln!(f, "private key  {file} (stays on this host)")?;
        if self.key_file != Path::new(KEY_FILE) {
            writeln!(
                f,
                "             write into this host's config: key_file = \"{file}\""
            )?;
        }
        write!(
            f,
            "
If this is the shadow host, write into [service.mirror] of the node's config:

agent_key = \"{key}\"

If this is the node, write into the shadow host's config:

[[tap]]
name = \"{name}\"
key = \"{key}\"
"
        )
    }
}

pub(super) fn run(printer: Printer, command: KeysCommand) -> anyhow::Result<ExitCode> {
    let (file, key) = match command {
        KeysCommand::New { file, replace } => {
            let existing = match replace {
                true => Existing::Replace,
                false => Existing::Keep,
            };
            let key = PrivateKey::create(&file.path, existing)?;
            (file.path, key)
        }
        KeysCommand::Show { file } => {
            let key = PrivateKey::read(&file.path)?;
            (file.path, key)
        }
    };
    printer.print(&Shown {
        public_key: key.public(),
        key_file: path::absolute(file)?,
        name: name(),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// This host's name, where it is fit for a tap's.
fn name() -> String {
    let name = nix::unistd::gethostname().ok();
    let name = name.and_then(|name| name.into_string().ok());
    let fit = |name: &String| config::is_name(name) && name.parse::<IpAddr>().is_err();
    name.filter(fit).unwrap_or_else(|| "node-1".to_owned())
}
