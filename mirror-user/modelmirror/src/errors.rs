//! Why the program failed, as text and as JSON, and its exit code.

use std::process::ExitCode;

use mirror_base::config;
use serde_json::json;

use crate::arguments::Output;
use crate::config_file::NoConfig;
use crate::print::{ReaderGone, complain, complain_in_json};

/// Exit code for a config that is refused; clap uses the same for bad arguments.
pub(crate) const BAD_CONFIG: u8 = 2;

/// Says why, and with which code the program ends.
pub(crate) fn report(output: Output, error: &anyhow::Error) -> ExitCode {
    if error.is::<ReaderGone>() {
        return ExitCode::SUCCESS;
    }
    match output {
        Output::Text => complain(&in_words(error)),
        Output::Json => complain_in_json(&in_json(error)),
    }
    if error.is::<config::Error>() || error.is::<NoConfig>() {
        ExitCode::from(BAD_CONFIG)
    } else {
        ExitCode::FAILURE
    }
}

/// The command line makes no sense, or asks for help.
pub(crate) fn report_usage(output: Output, error: &clap::Error) -> ExitCode {
    if error.use_stderr() && output == Output::Json {
        let said = error.render().to_string();
        let said = said.split("\n\nUsage: ").next().unwrap_or_default();
        let said = said.split("\n\nFor more information").next();
        let said = said.unwrap_or_default().trim();
        let said = said.strip_prefix("error: ").unwrap_or(said);
        complain_in_json(&json!({ "error": said }));
    } else {
        // When there is no stderr either there is nobody left to tell.
        let _ = error.print();
    }
    ExitCode::from(error.exit_code() as u8)
}

/// One line; but for a config that is refused, every problem in its place.
fn in_words(error: &anyhow::Error) -> String {
    match error.downcast_ref() {
        Some(config::Error::Refused(report)) => format!("{report}\nerror: {}", unusable(report)),
        _ => format!("error: {error:#}"),
    }
}

/// The same for programs: `{"error": "...", "problems": [{"file", "line", "column", "what", "cure"}]}`.
fn in_json(error: &anyhow::Error) -> serde_json::Value {
    match error.downcast_ref() {
        Some(config::Error::Refused(report)) => {
            let file = report.file().display().to_string();
            let places = report.places().into_iter().map(|place| {
                json!({
                    "file": file,
                    "line": place.line,
                    "column": place.column,
                    "what": place.what,
                    "cure": place.cure,
                })
            });
            json!({ "error": unusable(report), "problems": places.collect::<Vec<_>>() })
        }
        _ => json!({ "error": format!("{error:#}") }),
    }
}

fn unusable(report: &config::Report) -> String {
    let problems = match report.count() {
        1 => "1 problem".to_owned(),
        count => format!("{count} problems"),
    };
    format!("{} cannot be used: {problems}", report.file().display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_s_problems_are_places_in_json() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.toml");
        std::fs::write(&file, "interfaces = [\"eth0\"]\nadimn = 1\n").unwrap();
        let error: anyhow::Error = mirror_node::config::read_node(&file).unwrap_err().into();
        let json = in_json(&error);
        let problems = json["problems"].as_array().unwrap();
        let unknown = |problem: &&serde_json::Value| problem["line"] == 2;
        let problem = problems.iter().find(unknown).unwrap();
        assert_eq!(problem["column"], 1);
        assert_eq!(problem["file"], json!(file));
        assert_eq!(problem["what"], "unknown key `adimn`");
        assert_eq!(problem["cure"], "did you mean `admin`?");
        let said = json["error"].as_str().unwrap();
        assert!(said.contains("node.toml cannot be used: "), "{said}");
        let other = in_json(&anyhow::anyhow!("why").context("what"));
        assert_eq!(other, json!({ "error": "what: why" }));
    }
}
