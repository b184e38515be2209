//! barfit, the command. See the library for everything it does.

mod multicall;

use std::process::ExitCode;

/// musl's own gives memory back to the kernel and asks for it again, which takes as long as all else that a hook does.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    multicall::by_name().unwrap_or_else(|| barfit::cli::run(std::env::args_os()))
}
