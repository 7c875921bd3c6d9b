//! Points at which a crash test ends the process, as `kill -9` would. Outside debug builds they are
//! nothing.

/// Kills this process here, where `PERENNIAL_TEST_ABORT_AFTER` names this step.
pub(crate) fn point(step: &str) {
    if cfg!(debug_assertions)
        && std::env::var_os("PERENNIAL_TEST_ABORT_AFTER").is_some_and(|wanted| wanted == step)
    {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
