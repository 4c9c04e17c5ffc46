//! What the derived parser cannot say: options that only some commands have a use for.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory as _, FromArgMatches as _};

use super::{Cli, Command};

/// Commands that ask nobody at a socket.
const WITHOUT_CONTROL: [&str; 6] = ["run", "shadow", "check", "report", "keys", "config"];

/// Commands that log.
const WITH_LOG: [&str; 2] = ["run", "shadow"];

/// What `--config` is for, by command.
const CONFIG: [(&str, &str); 5] = [
    (
        "run",
        "The config file [default: /etc/modelmirror/node.toml]",
    ),
    (
        "shadow",
        "The config file [default: /etc/modelmirror/shadow.toml]",
    ),
    (
        "check",
        "The config file [default: node.toml or shadow.toml in /etc/modelmirror, whichever is there]",
    ),
    (
        "off",
        "Where pin_dir, state_dir and control_socket stand [default: /etc/modelmirror/node.toml, if it is there]",
    ),
    (
        "report",
        "The agent's config: its record_dir is read [default: /etc/modelmirror/shadow.toml, if it is there]",
    ),
];

/// The parser, whose help leaves out what a command has no use for.
pub(super) fn parser() -> clap::Command {
    let mut parser = Cli::command();
    for (name, help) in CONFIG {
        parser = parser.mut_subcommand(name, |command| {
            command.mut_arg("config", |config| config.help(help))
        });
    }
    let check = "check";
    parser = parser.mut_subcommand("config", |command| {
        command.mut_subcommand(check, |command| {
            let (_, help) = CONFIG[2];
            command.mut_arg("config", |config| config.help(help))
        })
    });
    let names: Vec<String> = parser
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    for name in names {
        let mut useless = Vec::new();
        if WITHOUT_CONTROL.contains(&name.as_str()) {
            useless.push("control");
        }
        if !WITH_LOG.contains(&name.as_str()) {
            useless.push("log_format");
        }
        let useless: Vec<Arg> = parser
            .get_arguments()
            .filter(|argument| useless.contains(&argument.get_id().as_str()))
            .map(|argument| argument.clone().hide(true))
            .collect();
        // One that a command has already is not replaced by that of all commands.
        parser = parser.mut_subcommand(name, |command| command.args(useless));
    }
    parser
}

/// Takes the command line apart.
///
/// # Errors
/// When it makes no sense, and when help is asked for.
pub(crate) fn parse(typed: Vec<OsString>) -> Result<Cli, clap::Error> {
    let mut parser = parser();
    let matches = parser.try_get_matches_from_mut(typed)?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut parser))?;
    cli.global.control = cli
        .global
        .control
        .filter(|path| !path.as_os_str().is_empty());
    cli.global.names_config = is_typed(&matches, "config");
    let refuse = |said: &str| Err(parser.clone().error(ErrorKind::ArgumentConflict, said));
    match &cli.command {
        // They are not asked at a socket, they listen at one.
        Command::Run { .. } | Command::Shadow { .. } if is_typed(&matches, "control") => refuse(
            "`run` and `shadow` listen where their config says (`control_socket`): leave --control out",
        ),
        Command::Report(report) if report.records.is_some() && cli.global.names_config => refuse(
            "the argument '--config <FILE>' cannot be used with '--records <DIR>': each says where the records are",
        ),
        _ => Ok(cli),
    }
}

/// Whether an option of the command was typed, rather than found in the environment.
fn is_typed(matches: &ArgMatches, name: &str) -> bool {
    let Some((_, matches)) = matches.subcommand() else {
        return false;
    };
    let own = matches
        .try_contains_id(name)
        .is_ok_and(|_| matches.value_source(name) == Some(ValueSource::CommandLine));
    own || is_typed(matches, name)
}

/// Whether errors are wanted as JSON, where the command line could not be understood.
pub(crate) fn wants_json(typed: &[OsString]) -> bool {
    let words: Vec<_> = typed.iter().map(|word| word.to_string_lossy()).collect();
    let whole = ["--output=json", "-ojson", "-o=json"];
    let apart = ["--output", "-o"];
    words.iter().any(|word| whole.contains(&word.as_ref()))
        || words
            .windows(2)
            .any(|pair| apart.contains(&pair[0].as_ref()) && pair[1] == "json")
}
