//! Where the tensors live.

use crate::error::{Result, invalid, unsupported};
use candle_core::{Device, DeviceLocation};

/// Returns the device that `spec` names: `"auto"`, `"cpu"`, `"cuda"` or `"cuda:N"`.
///
/// `"auto"` is the CPU, in a build with CUDA too. A device that this build or this machine does not have is
/// an error, never a silent run on the CPU.
pub fn device(spec: &str) -> Result<Device> {
    let card = match spec {
        "auto" | "cpu" => return Ok(Device::Cpu),
        "cuda" => Some(0),
        _ => spec.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
    };
    match card {
        Some(card) => self::card(spec, card),
        None => invalid!("device {spec:?}: expected \"auto\", \"cpu\", \"cuda\" or \"cuda:N\""),
    }
}

/// Returns the device that `spec` names, where it is not the CPU; an empty one is `"auto"`.
pub(crate) fn accelerator(spec: &str) -> Result<Option<Device>> {
    let device = device(if spec.is_empty() { "auto" } else { spec })?;
    Ok(Some(device).filter(|device| !device.is_cpu()))
}

/// Returns what a device is called: `"cpu"` or `"cuda:N"`.
pub(crate) fn name(device: Option<&Device>) -> String {
    match device.map(Device::location) {
        None | Some(DeviceLocation::Cpu) => "cpu".into(),
        Some(DeviceLocation::Cuda { gpu_id }) => format!("cuda:{gpu_id}"),
        Some(DeviceLocation::Metal { gpu_id }) => format!("metal:{gpu_id}"),
    }
}

#[cfg(not(feature = "cuda"))]
fn card(spec: &str, _: usize) -> Result<Device> {
    unsupported!("device {spec:?}: this build of adventures has no CUDA; use \"cpu\" or \"auto\"")
}

/// Returns the `n`th card.
#[cfg(feature = "cuda")]
fn card(spec: &str, n: usize) -> Result<Device> {
    use candle_core::cuda_backend::cudarc::driver::CudaContext;
    use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute as Attribute;

    // Older cards have no bfloat16.
    const LEAST: (i32, i32) = (8, 0);
    // What candle's kernels are compiled for: they run on cards of the same generation, from this one on.
    let built = option_env!("CUDA_COMPUTE_CAP").and_then(|cap| cap.parse::<i32>().ok());
    let least = built.map_or(LEAST, |cap| (cap / 10, cap % 10));
    let cards = match CudaContext::device_count() {
        Ok(cards) => usize::try_from(cards).unwrap_or(0),
        Err(e) => return unsupported!("device {spec:?}: the driver finds no card: {e}"),
    };
    if n >= cards {
        return invalid!("device {spec:?}: this machine has {cards} cards, counted from 0");
    }
    let device = Device::new_cuda(n)?;
    let context = device.as_cuda_device()?.cuda_stream().context().clone();
    let number = |attribute| {
        context.attribute(attribute).map_err(|e| candle_core::Error::Msg(format!("asking {spec} what it is: {e}")))
    };
    let found = (
        number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    if found < least.max(LEAST) || (built.is_some() && found.0 != least.0) {
        let ((major, minor), (least, from)) = (found, least);
        return unsupported!(
            "device {spec:?}: its compute capability is {major}.{minor}; this build is for {least}.{from} and later {least}.x"
        );
    }
    Ok(device)
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
