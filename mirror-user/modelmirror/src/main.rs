//! The program `modelmirror`: the command line of node and shadow host.

mod arguments;
mod colors;
mod commands;
mod config_file;
mod confirm;
mod daemons;
mod errors;
mod files;
mod keys;
mod logging;
mod off;
mod print;
mod rollout;
mod service;
mod signals;
mod status;
mod watch;
mod wrap;

use std::path::Path;
use std::process::ExitCode;

use arguments::{Cli, Command, Global, Output};
use mirror_api::Mechanism;
use mirror_base::config;
use mirror_node::daemon;
use print::Printer;

/// Runs the command that the process was started with.
fn main() -> ExitCode {
    let typed = arguments::typed();
    let json = arguments::wants_json(&typed);
    let Cli { global, command } = match arguments::parse(typed) {
        Ok(cli) => cli,
        Err(error) => {
            let output = if json { Output::Json } else { Output::Text };
            return errors::report_usage(output, &error);
        }
    };
    anstream::ColorChoice::from(global.color).write_global();
    match run(&global, command) {
        Ok(code) => code,
        Err(error) => errors::report(global.output, &error),
    }
}

fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    let printer = Printer(global.output);
    let log_in_json = global.log_format == Output::Json;
    match command {
        Command::Run {
            file,
            detach_on_exit,
            attach,
            verbosity,
        } => {
            logging::start(log_in_json, verbosity);
            daemons::run(daemon::Options {
                object: mirror_programs::OBJECT,
                config: file.node()?,
                detach_on_exit,
                mechanism: attach.map(Mechanism::from),
            })
        }
        Command::Shadow { file, verbosity } => {
            logging::start(log_in_json, verbosity);
            daemons::shadow(&file.shadow()?)
        }
        Command::Check {
            file,
            probe_tls,
            strict,
        } => commands::check(printer, &file.either()?, probe_tls, strict),
        Command::Status {
            agent,
            service,
            check,
            watch,
        } => {
            let asked = status::Asked {
                control: global.control.as_deref(),
                only_agent: agent,
                service: service.as_deref(),
            };
            match (watch.watch, check) {
                (Some(every), _) => status::watch(printer, asked, every),
                (None, true) => status::check(printer, asked),
                (None, false) => status::status(printer, asked),
            }
        }
        Command::Mirror { change } => commands::mirror(printer, socket(global), change),
        Command::Canary { change } => commands::canary(printer, socket(global), change),
        Command::Rollout { command } => rollout::run(printer, socket(global), command),
        Command::Off {
            file,
            only_keep: true,
            ..
        } => off::keep(&file, global.names_config),
        Command::Off {
            file,
            if_present,
            consent,
            ..
        } => {
            confirm::confirm(consent, || off::QUESTION.to_owned())?;
            off::off(printer, global, &file, if_present)
        }
        Command::Report(arguments) => commands::report(printer, arguments),
        Command::Keys { command } => keys::run(printer, command),
        Command::Config { command } => commands::config(printer, command),
    }
}

fn socket(global: &Global) -> &Path {
    let socket = global.control.as_deref();
    socket.unwrap_or(Path::new(config::CONTROL_SOCKET))
}

/// Runs a short exchange on this thread.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(future)
}
