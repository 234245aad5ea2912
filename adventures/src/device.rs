//! Where the tensors live.

use crate::error::{Result, invalid, unsupported};
use candle_core::Device;

/// Returns the device that `spec` names: `"auto"`, `"cpu"`, `"cuda"` or `"cuda:N"`.
///
/// `"auto"` is the CPU in a build without CUDA. A device that this build or this machine does not have is
/// an error, never a silent run on the CPU.
pub fn device(spec: &str) -> Result<Device> {
    match spec {
        "auto" | "cpu" => Ok(Device::Cpu),
        _ if spec == "cuda" || spec.strip_prefix("cuda:").is_some_and(|n| n.parse::<usize>().is_ok()) => {
            unsupported!("device {spec:?}: this build of adventures has no CUDA; use \"cpu\" or \"auto\"")
        }
        _ => invalid!("device {spec:?}: expected \"auto\", \"cpu\", \"cuda\" or \"cuda:N\""),
    }
}

/// Returns how many threads `threads` asks for: all that the cgroup grants where it is `None`.
pub fn threads(threads: Option<usize>) -> Result<usize> {
    match threads {
        Some(0) => invalid!("threads=0: at least one thread is needed"),
        Some(n) if n > 1024 => invalid!("threads={n}: at most 1024"),
        Some(n) => Ok(n),
        None => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
    }
}

/// Returns a pool of `threads` named threads. Each model owns one, so that models never wait for each other's work.
pub(crate) fn pool(threads: usize, name: &'static str) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(move |i| format!("{name}-{i}"))
        .build()
        .map_err(|e| crate::Error::io(format!("starting {threads} threads"), std::io::Error::other(e)))
}
