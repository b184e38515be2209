//! barfit, the command.

mod multicall;

use std::process::ExitCode;

use barfit::prove::command;
use clap::Parser;

#[derive(Parser)]
#[command(version, about)]
enum Command {
    /// Ask the real firmware, in the real QEMU with stand-in devices
    Prove(command::Arguments),
}

fn main() -> ExitCode {
    if let Some(code) = multicall::by_name() {
        return code;
    }
    let Command::Prove(arguments) = Command::parse();
    match command::run(&arguments, &mut std::io::stdout(), &mut std::io::stderr()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "barfit: {error}");
            ExitCode::from(2)
        }
    }
}
