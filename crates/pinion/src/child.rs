//! The inside of a worker's process: its pipes are kept from what models and libraries print and read, and it ends when
//! the server does. Knows descriptors and signals, nothing of frames.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

/// Serves frames on stdin and stdout until told to go or until the server is gone. Does not return: what the models hold
/// goes with the process, not by their destructors.
pub fn main(registry: worker::Registry, owned: worker::Owned) -> ! {
    match serve(registry, owned) {
        Ok(()) => leave(0),
        Err(error) => {
            tracing::error!(%error, "the worker could not start");
            leave(1)
        }
    }
}

fn serve(registry: worker::Registry, owned: worker::Owned) -> io::Result<()> {
    let frames_in = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let frames_out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    // From here a print goes to the log and a read finds nothing.
    replace(io::stdin().as_fd(), File::open("/dev/null")?.as_raw_fd())?;
    replace(io::stdout().as_fd(), io::stderr().as_raw_fd())?;
    obey_the_server_only();
    worker::serve_pipes(registry, owned, frames_in, frames_out, kernels::pool::progress, || leave(0))
}

fn replace(descriptor: BorrowedFd, by: RawFd) -> io::Result<()> {
    // SAFETY: both are open; the standard descriptors are nobody's to close.
    match unsafe { libc::dup2(by, descriptor.as_raw_fd()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Ctrl-C and a supervisor's SIGTERM reach every process of the group: the server lets what runs finish, and ends this one
/// by closing its stdin. Should the server die while this process is stopped, the system kills it.
fn obey_the_server_only() {
    // SAFETY: no memory is touched but a constant name.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        #[cfg(target_os = "linux")]
        {
            // By the end of the thread that started us: of tokio's runtime, which lives as long as the server serves.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::prctl(libc::PR_SET_NAME, c"pinion-worker".as_ptr());
        }
    }
}

fn leave(code: i32) -> ! {
    // SAFETY: ends the process at once: no other thread is waited for, no destructor runs.
    unsafe { libc::_exit(code) }
}
