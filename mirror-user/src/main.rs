//! The program `modelmirror`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mirror_user::cli::main()
}
