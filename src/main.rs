//! barfit, the command. See the library for everything it does.

mod multicall;

use std::process::ExitCode;

fn main() -> ExitCode {
    multicall::by_name().unwrap_or_else(|| barfit::cli::run(std::env::args_os()))
}
