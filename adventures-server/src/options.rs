//! What the service is told: flags, environment variables and a TOML file, in this order of precedence.

use crate::library::{MAX_EXPAND, RetrievalKind};
use adventures::{Precision, Quantize};
use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Serves cited chat from a library, to browsers and to OpenAI's clients.
///
/// Each flag is also an environment variable, ADVENTURES_HOST for --host, and a line of a TOML file, host = "…".
/// A flag beats the variable, the variable the file. Models are pulled beforehand with
/// `adventures models pull NAME`, or by `adventures serve`, which then becomes this program.
#[derive(Debug, Default, Parser, Serialize, Deserialize)]
#[allow(clippy::doc_markdown, reason = "the texts of --help")]
#[command(name = "adventures-server", version, max_term_width = 110)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Flags {
    /// A TOML file with any of these settings.
    #[arg(long, env = "ADVENTURES_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Ask the service that runs on --port whether it is ready, and exit with 0 where it is: for a container's health check
    #[arg(long)]
    #[serde(skip)]
    pub probe: bool,
    /// Print the models that it would load, one a line, and exit; `adventures serve` fetches these
    #[arg(long)]
    #[serde(skip)]
    pub models: bool,
    /// The library, which `adventures sync` wrote: a folder, or s3://, gs://, az:// or abfss:// with credentials in the variables
    /// of their vendor's tools. Without one the model answers from itself
    #[arg(long, short, env = "ADVENTURES_LIBRARY", value_name = "PATH")]
    pub library: Option<String>,
    /// A setting of the library's object store, such as aws_region=eu-west-1; may repeat
    #[arg(long, env = "ADVENTURES_STORAGE_OPTION", value_name = "NAME=VALUE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_option: Option<Vec<String>>,
    /// The library's table [default: passages]
    #[arg(long, env = "ADVENTURES_TABLE", value_name = "NAME")]
    pub table: Option<String>,
    /// The model that embeds [default: the library's, else all-minilm-l6-v2]
    #[arg(long, short, env = "ADVENTURES_EMBEDDER", value_name = "MODEL")]
    pub embedder: Option<String>,
    /// The model that writes, or none [default: smollm2-135m-instruct]
    #[arg(long, short, env = "ADVENTURES_GENERATOR", value_name = "MODEL")]
    pub generator: Option<String>,
    /// The model that puts what was found in order, a cross-encoder or ColBERT [default: none]
    #[arg(long, env = "ADVENTURES_RERANKER", value_name = "MODEL")]
    pub reranker: Option<String>,
    /// A folder of ColBERT indexes, which clients make, fill and search; made where it is not there [default: none]
    #[arg(long, env = "ADVENTURES_INDEXES", value_name = "PATH")]
    pub indexes: Option<PathBuf>,
    /// The model of token vectors [default: the library's, and for the indexes answerai-colbert-small-v1]
    #[arg(long, env = "ADVENTURES_COLBERT", value_name = "MODEL")]
    pub colbert: Option<String>,
    /// What the embedder's products are rounded to: f32, bf16x2, bf16, int8, or auto, the fastest here [default: the library's, else f32]
    #[arg(long, env = "ADVENTURES_PRECISION", value_name = "NAME")]
    pub precision: Option<String>,
    /// What the weights of a generator in safetensors are rounded to as it is loaded: q8_0 or q4_k [default: not at all]
    #[arg(long, env = "ADVENTURES_QUANTIZE", value_name = "NAME")]
    pub quantize: Option<String>,
    /// The address to listen on; another than loopback needs a key [default: 127.0.0.1]
    #[arg(long, env = "ADVENTURES_HOST", value_name = "ADDRESS")]
    pub host: Option<IpAddr>,
    /// The port to listen on; 0 takes any [default: 8080]
    #[arg(long, short, env = "ADVENTURES_PORT", value_name = "N")]
    pub port: Option<u16>,
    /// A name that clients may reach the service by, beside localhost and the address; may repeat
    #[arg(long, env = "ADVENTURES_ALLOW_HOST", value_name = "NAME", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_host: Option<Vec<String>>,
    /// An origin whose pages may call the service, such as https://intranet.example; may repeat
    #[arg(long, env = "ADVENTURES_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors_origin: Option<Vec<String>>,
    /// The key that clients send as `Authorization: Bearer KEY`; rather give the variable than the flag
    #[arg(long, env = "ADVENTURES_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// A file of keys, a line each: NAME KEY [REQUESTS PER MINUTE]
    #[arg(long, env = "ADVENTURES_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Requests a minute for each key that states no limit of its own [default: no limit]
    #[arg(long, env = "ADVENTURES_REQUESTS_PER_MINUTE", value_name = "N")]
    pub requests_per_minute: Option<u32>,
    /// How many answers are written side by side [default: 4]
    #[arg(long, env = "ADVENTURES_SLOTS", value_name = "N")]
    pub slots: Option<usize>,
    /// How many more may wait; others are told to come back later [default: 64]
    #[arg(long, env = "ADVENTURES_QUEUE", value_name = "N")]
    pub queue: Option<usize>,
    /// CPU threads for each model [default: all that the cgroup grants]
    #[arg(long, env = "ADVENTURES_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// The most tokens of prompt and answer together [default: what the model was trained for]
    #[arg(long, env = "ADVENTURES_CONTEXT", value_name = "N")]
    pub context: Option<usize>,
    /// MiB kept of what was read of prompts, for prompts that begin alike [default: 256]
    #[arg(long, env = "ADVENTURES_PREFIX_MIB", value_name = "N")]
    pub prefix_mib: Option<usize>,
    /// The longest answer, in tokens [default: 512]
    #[arg(long, env = "ADVENTURES_MAX_TOKENS", value_name = "N")]
    pub max_tokens: Option<usize>,
    /// How many passages are searched for a question [default: 4]
    #[arg(short, long, env = "ADVENTURES_K", value_name = "N")]
    pub k: Option<usize>,
    /// Search by words too, and fuse both [default: false]
    #[arg(long, env = "ADVENTURES_HYBRID", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub hybrid: Option<bool>,
    /// What finds passages, a vector of each or a vector of each token, which `adventures sync --colbert` makes [default: dense]
    #[arg(long, env = "ADVENTURES_RETRIEVAL", value_name = "KIND")]
    pub retrieval: Option<RetrievalKind>,
    /// Give each passage that is found with so many before and after it in its row, 100 at most [default: 0]
    #[arg(long, env = "ADVENTURES_EXPAND", value_name = "N")]
    pub expand: Option<usize>,
    /// The cosine similarity below which a passage is not about the question [default: the embedder's]
    #[arg(long, env = "ADVENTURES_MIN_SIMILARITY", value_name = "X", allow_negative_numbers = true)]
    pub min_similarity: Option<f32>,
    /// Who answers, and how: the system text
    #[arg(long, env = "ADVENTURES_SYSTEM", value_name = "TEXT")]
    pub system: Option<String>,
    /// Seconds after which a request is given up [default: 300]
    #[arg(long, env = "ADVENTURES_DEADLINE", value_name = "SECONDS")]
    pub deadline: Option<u64>,
    /// Seconds after which a reader that takes nothing is dropped [default: 30]
    #[arg(long, env = "ADVENTURES_STALL", value_name = "SECONDS")]
    pub stall: Option<u64>,
    /// Seconds that running answers have to end after SIGTERM [default: 20]
    #[arg(long, env = "ADVENTURES_GRACE", value_name = "SECONDS")]
    pub grace: Option<u64>,
    /// The page's title [default: adventures]
    #[arg(long, env = "ADVENTURES_TITLE", value_name = "TEXT")]
    pub title: Option<String>,
    /// What the page says before the first question
    #[arg(long, env = "ADVENTURES_GREETING", value_name = "TEXT")]
    pub greeting: Option<String>,
    /// A question that the page proposes; may repeat, in a variable on a line each
    #[arg(long, env = "ADVENTURES_EXAMPLE", value_name = "QUESTION", value_delimiter = '\n')]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub example: Option<Vec<String>>,
    /// How logs are written [default: text at a terminal, else json]
    #[arg(long, env = "ADVENTURES_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What is logged: error, warn, info, debug, or a filter such as lance=warn,info [default: info]
    #[arg(long, env = "ADVENTURES_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// What the service does, checked.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the flags of the same name have the documentation")]
pub struct Options {
    pub library: Option<String>,
    pub storage: Vec<(String, String)>,
    pub table: String,
    pub embedder: Option<String>,
    pub generator: Option<String>,
    pub reranker: Option<String>,
    pub indexes: Option<PathBuf>,
    pub colbert: Option<String>,
    pub precision: Option<Precision>,
    pub quantize: Option<Quantize>,
    pub host: IpAddr,
    pub port: u16,
    pub allow_host: Vec<String>,
    pub cors_origin: Vec<String>,
    pub keys: Vec<Key>,
    pub slots: usize,
    pub queue: usize,
    pub threads: Option<usize>,
    pub context: Option<usize>,
    pub prefix_bytes: usize,
    pub max_tokens: usize,
    pub k: usize,
    pub hybrid: bool,
    pub retrieval: RetrievalKind,
    pub expand: usize,
    pub min_similarity: Option<f32>,
    pub system: Option<String>,
    pub deadline: Duration,
    pub stall: Duration,
    pub grace: Duration,
    pub title: String,
    pub greeting: String,
    pub examples: Vec<String>,
    pub log_format: Option<LogFormat>,
    pub log: String,
}

/// A key that opens the service.
#[derive(Clone)]
pub struct Key {
    /// What logs and metrics call it.
    pub name: String,
    /// The secret.
    pub secret: String,
    /// How many requests it may make a minute.
    pub per_minute: Option<u32>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("name", &self.name).field("per_minute", &self.per_minute).finish_non_exhaustive()
    }
}

/// The most passages that one search returns.
pub const MAX_K: usize = 100;
/// Below this a key could be guessed.
const MIN_KEY: usize = 16;

/// Returns the settings of one flag, or of the variable: a comma stands between two where a name follows it; all others belong
/// to values, as in a key that is JSON.
fn storage_options(given: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for part in given.split(',') {
        let name = part.split_once('=').map_or("", |(name, _)| name);
        let named = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        match all.last_mut() {
            Some(last) if !named => {
                last.push(',');
                last.push_str(part);
            }
            _ => all.push(part.to_owned()),
        }
    }
    all
}

impl Flags {
    /// Returns the checked settings: what these flags leave open, from the file, else by default.
    pub fn options(mut self) -> Result<Options> {
        if let Some(given) = &mut self.storage_option {
            *given = given.iter().flat_map(|given| storage_options(given)).collect();
        }
        let flags = match &self.config {
            None => self,
            Some(path) => {
                let what = || format!("the configuration {}", path.display());
                let text = std::fs::read_to_string(path).with_context(what)?;
                let mut merged: toml::Table = toml::from_str(&text).with_context(what)?;
                merged.extend(toml::Table::try_from(&self).context("the flags")?);
                merged.try_into().with_context(what)?
            }
        };
        let host = flags.host.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        let keys = flags.keys()?;
        ensure!(
            host.is_loopback() || !keys.is_empty(),
            "host {host} is open to others, and there is no key: set ADVENTURES_API_KEY or --api-key-file"
        );
        let within = |name: &str, value: Option<usize>, default: usize, range: std::ops::RangeInclusive<usize>| {
            let value = value.unwrap_or(default);
            ensure!(range.contains(&value), "{name} {value}: expected {} to {}", range.start(), range.end());
            Ok(value)
        };
        if let Some(x) = flags.min_similarity {
            ensure!((-1.0..=1.0).contains(&x), "min-similarity {x}: expected -1 to 1");
        }
        let retrieval = flags.retrieval.unwrap_or_default();
        ensure!(
            retrieval == RetrievalKind::Dense || flags.library.is_some(),
            "retrieval colbert: there is no library; name it with --library"
        );
        for origin in flags.cors_origin.iter().flatten() {
            let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            let plain = rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['/', '*', ' ']));
            ensure!(plain, "cors-origin {origin:?}: expected scheme and host, such as https://intranet.example");
        }
        let seconds = |name: &str, value: Option<u64>, default: u64| {
            let value = value.unwrap_or(default);
            ensure!((1..=86_400).contains(&value), "{name} {value}: expected 1 to 86400 seconds");
            Ok(Duration::from_secs(value))
        };
        let mut storage = Vec::new();
        for (i, option) in flags.storage_option.iter().flatten().enumerate() {
            // A message must not hold a secret.
            let pair = option.split_once('=').filter(|(name, _)| !name.is_empty());
            let (name, value) = pair.with_context(|| format!("storage-option {}: expected NAME=VALUE", i + 1))?;
            ensure!(flags.library.is_some(), "storage-option {name}: there is no library; name it with --library");
            storage.push((name.to_owned(), value.to_owned()));
        }
        let table = flags.table.unwrap_or_else(|| "passages".into());
        crate::library::check_name(&table)?;
        Ok(Options {
            library: flags.library,
            storage,
            table,
            embedder: flags.embedder,
            generator: Some(flags.generator.unwrap_or_else(|| "smollm2-135m-instruct".into())).filter(|g| g != "none"),
            reranker: flags.reranker,
            indexes: flags.indexes,
            colbert: flags.colbert,
            precision: flags.precision.as_deref().map(str::parse).transpose()?,
            quantize: flags.quantize.as_deref().map(str::parse).transpose()?,
            host,
            port: flags.port.unwrap_or(8080),
            allow_host: flags.allow_host.unwrap_or_default(),
            cors_origin: flags.cors_origin.unwrap_or_default(),
            keys,
            slots: within("slots", flags.slots, 4, 1..=64)?,
            queue: within("queue", flags.queue, 64, 0..=10_000)?,
            threads: flags.threads,
            context: flags.context,
            prefix_bytes: within("prefix-mib", flags.prefix_mib, 256, 0..=1 << 20)? << 20,
            max_tokens: within("max-tokens", flags.max_tokens, 512, 1..=1 << 20)?,
            k: within("k", flags.k, 4, 1..=MAX_K)?,
            hybrid: flags.hybrid.unwrap_or(false),
            retrieval,
            expand: within("expand", flags.expand, 0, 0..=MAX_EXPAND)?,
            min_similarity: flags.min_similarity,
            system: flags.system,
            deadline: seconds("deadline", flags.deadline, 300)?,
            stall: seconds("stall", flags.stall, 30)?,
            grace: seconds("grace", flags.grace, 20)?,
            title: flags.title.unwrap_or_else(|| "adventures".into()),
            greeting: flags.greeting.unwrap_or_default(),
            examples: flags.example.unwrap_or_default(),
            log_format: flags.log_format,
            log: flags.log.unwrap_or_else(|| "info".into()),
        })
    }

    fn keys(&self) -> Result<Vec<Key>> {
        let mut keys = Vec::new();
        if let Some(secret) = &self.api_key {
            keys.push(Key { name: "default".into(), secret: secret.clone(), per_minute: self.requests_per_minute });
        }
        if let Some(path) = &self.api_key_file {
            let text = std::fs::read_to_string(path).with_context(|| format!("the key file {}", path.display()))?;
            for (number, line) in text.lines().enumerate() {
                let line = line.trim();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                // A message must not hold the key.
                let place = || format!("{}, line {}", path.display(), number + 1);
                let words: Vec<&str> = line.split_whitespace().collect();
                let (name, secret, limit) = match words[..] {
                    [name, secret] => (name, secret, None),
                    [name, secret, limit] => (name, secret, Some(limit)),
                    _ => bail!("{}: expected NAME KEY [REQUESTS PER MINUTE]", place()),
                };
                let limit = limit.map(|n| n.parse::<u32>().ok().filter(|n| *n > 0));
                let per_minute = match limit {
                    Some(None) => bail!("{}: the requests per minute are no number from 1 on", place()),
                    Some(limit) => limit,
                    None => self.requests_per_minute,
                };
                keys.push(Key { name: name.into(), secret: secret.into(), per_minute });
            }
            ensure!(!keys.is_empty(), "the key file {} has no key", path.display());
        }
        for (i, key) in keys.iter().enumerate() {
            ensure!(
                key.secret.len() >= MIN_KEY && key.secret.bytes().all(|b| b.is_ascii_graphic()),
                "the key {:?}: expected {MIN_KEY} or more visible ASCII characters",
                key.name
            );
            let twice = keys[..i].iter().any(|other| other.name == key.name || other.secret == key.secret);
            ensure!(!twice, "the key {:?}: its name or secret is that of another", key.name);
        }
        if let Some(0) = self.requests_per_minute {
            bail!("requests-per-minute 0: expected a number from 1 on");
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::storage_options;

    #[test]
    fn commas_of_values_do_not_end_them() {
        for (given, want) in [
            ("aws_region=eu-west-1", vec!["aws_region=eu-west-1"]),
            ("aws_region=x,allow_http=true", vec!["aws_region=x", "allow_http=true"]),
            (
                r#"google_service_account_key={"a": "b=", "c": "d"},allow_http=true"#,
                vec![r#"google_service_account_key={"a": "b=", "c": "d"}"#, "allow_http=true"],
            ),
            // What looks like a name begins a setting, which is refused as one that nothing knows.
            ("aws_session_token=a,b=c", vec!["aws_session_token=a", "b=c"]),
            ("secret", vec!["secret"]),
            ("=secret", vec!["=secret"]),
            ("a=,b", vec!["a=,b"]),
            ("", vec![""]),
        ] {
            assert_eq!(storage_options(given), want, "{given}");
        }
    }
}
