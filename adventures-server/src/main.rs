//! `adventures-server`: cited chat over HTTP.

use adventures_server::http;
use adventures_server::options::{Flags, LogFormat, Options};
use adventures_server::service::Service;
use anyhow::Context;
use clap::Parser;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

fn main() -> ExitCode {
    keep_little();
    let flags = Flags::parse();
    let (probe, models) = (flags.probe, flags.models);
    let options = match flags.options() {
        Ok(options) => options,
        Err(problem) => return fail(&problem, 2),
    };
    if probe {
        return match http::probe(options.host, options.port) {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => fail(&problem, 1),
        };
    }
    if let Err(problem) = log(&options) {
        return fail(&problem, 2);
    }
    // LanceDB's work, and loading models, is done beside the threads that answer requests.
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(problem) => return fail(&problem.into(), 1),
    };
    let handle = runtime.handle().clone();
    if models {
        let told = runtime.block_on(Service::needs(&options, handle)).and_then(|names| {
            names.iter().try_for_each(|name| writeln!(std::io::stdout(), "{name}")).context("telling the models")
        });
        return told.map_or_else(|problem| fail(&problem, 1), |()| ExitCode::SUCCESS);
    }
    let served = actix_web::rt::System::new().block_on(http::serve(options, handle));
    runtime.shutdown_background();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => fail(&problem, 1),
    }
}

/// Tells what went wrong, in one line.
fn fail(problem: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("adventures-server: {problem:#}");
    ExitCode::from(code)
}

fn log(options: &Options) -> anyhow::Result<()> {
    let text = match options.log_format {
        Some(format) => format == LogFormat::Text,
        None => std::io::stderr().is_terminal(),
    };
    // Of its own parts a LanceDB tells more than anybody wants.
    let filter = EnvFilter::try_new(format!("lance=warn,lancedb=warn,datafusion=warn,{}", options.log))
        .map_err(|problem| anyhow::anyhow!("log {:?}: {problem}", options.log))?;
    // How long each part of a request took is told where somebody looks for it.
    let detailed = filter.max_level_hint().is_none_or(|level| level >= LevelFilter::DEBUG);
    let spans = if detailed { FmtSpan::CLOSE } else { FmtSpan::NONE };
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_span_events(spans).with_env_filter(filter);
    if text {
        lines.with_target(false).init();
    } else {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(true).init();
    }
    Ok(())
}

/// Has glibc give memory back: left to itself it keeps what threads freed apart, eight heaps for each core, and takes ever larger
/// blocks from them. After ten minutes of mixed requests on two cores a service has 387 MiB, not 429, and an hour adds nothing.
fn keep_little() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const MIB: libc::c_int = 1 << 20;
        let heaps = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 64)) as libc::c_int;
        let settings = [(libc::M_ARENA_MAX, heaps), (libc::M_MMAP_THRESHOLD, MIB), (libc::M_TRIM_THRESHOLD, 4 * MIB)];
        for (name, value) in settings {
            // SAFETY: it takes two numbers, and no thread but this one runs yet. What it does not know it ignores.
            #[allow(unsafe_code)]
            unsafe {
                libc::mallopt(name, value);
            }
        }
    }
}
