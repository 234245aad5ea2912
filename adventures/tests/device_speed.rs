//! How fast models of real shapes run on a device: `ADVENTURES_TEST_DEVICE=cuda … --ignored --nocapture`, which `tools/gpu.sh`
//! does. Weights are random, so the text means nothing and the time is that of the real ones. Prints a line of JSON for each.
#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

use adventures::Precision;
use adventures::checkpoint::Checkpoint;
use adventures::gguf::Gguf;
use adventures::models::decoder::{DecoderOptions, from_checkpoint, from_gguf};
use adventures::models::{Batch, CausalLm, Step, encoder};
use candle_core::Device;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What a memory moves in a second, where `SPEED_GB_PER_S` does not say otherwise: an H200's 4.8 TB.
const BANDWIDTH: f64 = 4800.0;
const PROMPT: usize = 512;
const TOKENS: usize = 128;

/// The shape of a decoder.
struct Shape {
    model_type: &'static str,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    inner: usize,
    vocab: usize,
    tied: bool,
}

const GEMMA_2B: Shape = Shape {
    model_type: "gemma",
    hidden: 2048,
    layers: 18,
    heads: 8,
    kv_heads: 1,
    head_dim: 256,
    inner: 16_384,
    vocab: 256_000,
    tied: true,
};
const MISTRAL_7B: Shape = Shape {
    model_type: "mistral",
    hidden: 4096,
    layers: 32,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    inner: 14_336,
    vocab: 32_000,
    tied: false,
};

/// A type of GGUF's.
struct Blocks {
    name: &'static str,
    number: u32,
    weights: usize,
    bytes: usize,
    /// Numbers in half precision that a block begins with.
    scales: usize,
}

const Q4_K: Blocks = Blocks { name: "Q4_K", number: 12, weights: 256, bytes: 144, scales: 2 };
/// Those that candle has and those that it has not.
const TYPES: [Blocks; 5] = [
    Q4_K,
    Blocks { name: "Q4_0", number: 2, weights: 32, bytes: 18, scales: 1 },
    Blocks { name: "Q8_0", number: 8, weights: 32, bytes: 34, scales: 1 },
    Blocks { name: "IQ4_NL", number: 20, weights: 32, bytes: 18, scales: 1 },
    Blocks { name: "IQ4_XS", number: 23, weights: 256, bytes: 136, scales: 1 },
];

/// A tensor: name, rows, and columns where it is a matrix.
type Tensor = (String, usize, Option<usize>);

impl Shape {
    /// The tensors, by the names of transformers.
    fn tensors(&self) -> Vec<Tensor> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = vec![("model.embed_tokens".to_owned(), self.vocab, Some(self.hidden))];
        for i in 0..self.layers {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            all.push((at("input_layernorm"), self.hidden, None));
            all.push((at("self_attn.q_proj"), q, Some(self.hidden)));
            all.push((at("self_attn.k_proj"), kv, Some(self.hidden)));
            all.push((at("self_attn.v_proj"), kv, Some(self.hidden)));
            all.push((at("self_attn.o_proj"), self.hidden, Some(q)));
            all.push((at("post_attention_layernorm"), self.hidden, None));
            all.push((at("mlp.gate_proj"), self.inner, Some(self.hidden)));
            all.push((at("mlp.up_proj"), self.inner, Some(self.hidden)));
            all.push((at("mlp.down_proj"), self.hidden, Some(self.inner)));
        }
        all.push(("model.norm".to_owned(), self.hidden, None));
        if !self.tied {
            all.push(("lm_head".to_owned(), self.vocab, Some(self.hidden)));
        }
        all
    }

    /// Writes a checkpoint in bfloat16; returns how many bytes one token reads of it.
    fn write(&self, dir: &Path) -> usize {
        std::fs::create_dir_all(dir).expect("a directory");
        let config = json!({
            "model_type": self.model_type, "hidden_size": self.hidden, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "intermediate_size": self.inner, "vocab_size": self.vocab, "max_position_embeddings": 8192,
            "tie_word_embeddings": self.tied,
        });
        std::fs::write(dir.join("config.json"), config.to_string()).expect("it is written");
        let tensors = self.tensors();
        let (mut header, mut end) = (serde_json::Map::new(), 0);
        for (name, rows, cols) in &tensors {
            let bytes = 2 * rows * cols.unwrap_or(1);
            let shape: Vec<usize> = [*rows].into_iter().chain(*cols).collect();
            let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes]});
            header.insert(format!("{name}.weight"), entry);
            end += bytes;
        }
        let header = Value::Object(header).to_string();
        let mut file = create(&dir.join("model.safetensors"));
        file.write_all(&(header.len() as u64).to_le_bytes()).expect("it is written");
        file.write_all(header.as_bytes()).expect("it is written");
        // The upper halves of single-precision numbers around 0, below 0.03.
        let noise: Vec<u8> = random(1 << 19).flat_map(|n| ((n & 0x8000) | 0x3c00 | (n & 0xff)).to_le_bytes()).collect();
        repeat(&mut file, &noise, end);
        end - if self.tied { 0 } else { 2 * self.vocab * self.hidden }
    }

    /// Writes a GGUF file whose matrices are of one type; returns how many bytes one token reads of it.
    fn write_gguf(&self, path: &Path, blocks: &Blocks) -> usize {
        let Blocks { number, weights, bytes: block_bytes, scales, .. } = *blocks;
        let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let key = |name: &str, kind: u32, value: &[u8]| [&string(name)[..], &kind.to_le_bytes(), value].concat();
        let size = |name: &str, n: usize| key(&format!("llama.{name}"), 4, &(n as u32).to_le_bytes());
        let keys = [
            key("general.architecture", 8, &string("llama")),
            size("block_count", self.layers),
            size("embedding_length", self.hidden),
            size("feed_forward_length", self.inner),
            size("attention.head_count", self.heads),
            size("attention.head_count_kv", self.kv_heads),
            size("context_length", 8192),
            key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5_f32.to_le_bytes()),
        ];
        let names = [
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("lm_head", "output"),
            ("model.layers.", "blk."),
            ("input_layernorm", "attn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("post_attention_layernorm", "ffn_norm"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ];
        let tensors = self.tensors();
        let (mut table, mut end, mut read) = (Vec::new(), 0, 0);
        for (name, rows, cols) in &tensors {
            let name = names.iter().fold(name.clone(), |name, (theirs, ours)| name.replace(theirs, ours));
            table.extend(string(&format!("{name}.weight")));
            let dims: Vec<u64> = cols.iter().chain([rows]).map(|n| *n as u64).collect();
            table.extend((dims.len() as u32).to_le_bytes());
            table.extend(dims.iter().flat_map(|n| n.to_le_bytes()));
            // Vectors are in single precision.
            table.extend(if cols.is_some() { number } else { 0 }.to_le_bytes());
            table.extend((end as u64).to_le_bytes());
            let bytes = cols.map_or(4 * rows, |cols| rows * cols / weights * block_bytes);
            read += if name == "token_embd" { 0 } else { bytes };
            end += bytes.next_multiple_of(32);
        }
        let head = [&b"GGUF"[..], &3_u32.to_le_bytes(), &(tensors.len() as u64).to_le_bytes()].concat();
        let mut start = [&head[..], &(keys.len() as u64).to_le_bytes(), &keys.concat(), &table].concat();
        start.resize(start.len().next_multiple_of(32), 0);
        let mut file = create(path);
        file.write_all(&start).expect("it is written");
        let mut noise: Vec<u8> = random(1 << 18).flat_map(u16::to_le_bytes).collect();
        noise.truncate(noise.len() / block_bytes * block_bytes);
        for block in noise.chunks_exact_mut(block_bytes) {
            // Scales of some thousandths, in half precision.
            block[..2 * scales].copy_from_slice(&[0x00, 0x10, 0x00, 0x10][..2 * scales]);
        }
        let ones: Vec<u8> = std::iter::repeat_n(1.0_f32.to_le_bytes(), self.hidden).flatten().collect();
        for (_, rows, cols) in &tensors {
            match cols {
                Some(cols) => repeat(&mut file, &noise, rows * cols / weights * block_bytes),
                None => file.write_all(&ones).expect("it is written"),
            }
        }
        file.flush().expect("it is written");
        read
    }
}

/// Numbers of a linear congruential generator.
fn random(count: usize) -> impl Iterator<Item = u16> {
    let mut state = 1_u64;
    (0..count).map(move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 48) as u16
    })
}

fn create(path: &Path) -> BufWriter<File> {
    BufWriter::new(File::create(path).expect("it is made"))
}

fn repeat(file: &mut BufWriter<File>, bytes: &[u8], mut count: usize) {
    while count > 0 {
        let part = count.min(bytes.len());
        file.write_all(&bytes[..part]).expect("it is written");
        count -= part;
    }
}

fn device() -> Device {
    let name = std::env::var("ADVENTURES_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    adventures::device(&name).expect("the device is there")
}

fn folder() -> PathBuf {
    let dir = std::env::temp_dir().join(format!("adventures-device-speed-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    dir
}

/// Reads a prompt and writes an answer twice; prints the second, as the first one warms up.
fn decode(name: &str, bytes: usize, lm: &dyn CausalLm) {
    let bandwidth = std::env::var("SPEED_GB_PER_S").ok().and_then(|n| n.parse().ok()).unwrap_or(BANDWIDTH);
    let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| i * 37 % 1000).collect();
    for warm in [false, true] {
        let mut run = lm.start();
        let start = Instant::now();
        run.read(&prompt).expect("it reads");
        let prompt_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let mut next = 1;
        for _ in 0..TOKENS {
            let ids = [next];
            let mut steps = [Step { run: run.as_mut(), ids: &ids }];
            let best = lm.step_best(&mut steps, lm.vocab_size()).expect("a device chooses");
            next = best[0].as_ref().expect("it reads")[0];
        }
        let per_second = TOKENS as f64 / start.elapsed().as_secs_f64();
        if warm {
            let line = json!({
                "model": name,
                "prompt_tokens_per_s": PROMPT as f64 / prompt_seconds,
                "tokens_per_s": per_second,
                "share_of_bandwidth": per_second * bytes as f64 / (bandwidth * 1e9),
            });
            println!("{line}");
        }
    }
}

#[test]
#[ignore = "writes 20 GB of weights; run by tools/gpu.sh"]
fn decoders() {
    let options = DecoderOptions { device: Some(device()), ..DecoderOptions::default() };
    let dir = folder();
    for (name, shape) in [("Gemma-2B bf16", GEMMA_2B), ("Mistral-7B bf16", MISTRAL_7B)] {
        let bytes = shape.write(&dir);
        let checkpoint = Arc::new(Checkpoint::open(&dir).expect("it opens"));
        decode(name, bytes, from_checkpoint(checkpoint, &options).expect("it loads").as_ref());
    }
    let path = dir.join("model.gguf");
    let bytes = MISTRAL_7B.write_gguf(&path, &Q4_K);
    let gguf = Arc::new(Gguf::open(&path).expect("it opens"));
    decode("Mistral-7B Q4_K", bytes, from_gguf(gguf, &options).expect("it loads").as_ref());
    std::fs::remove_dir_all(&dir).expect("it is removed");
}

/// Shapes that a CPU reads in no time, so that the files are known to be right; and types as the kernels of this crate read them.
#[test]
fn a_small_shape_is_written_and_read() {
    let shape = Shape { hidden: 256, layers: 2, heads: 2, kv_heads: 1, inner: 512, vocab: 1024, ..MISTRAL_7B };
    let options = DecoderOptions { device: Some(device()), ..DecoderOptions::default() };
    let dir = folder().join("small");
    let bytes = shape.write(&dir);
    let checkpoint = Arc::new(Checkpoint::open(&dir).expect("it opens"));
    decode("small bf16", bytes, from_checkpoint(checkpoint, &options).expect("it loads").as_ref());
    let path = dir.join("model.gguf");
    for blocks in &TYPES {
        shape.write_gguf(&path, blocks);
        let logits = |options: &DecoderOptions| -> Vec<f32> {
            let gguf = Arc::new(Gguf::open(&path).expect("it opens"));
            let lm = from_gguf(gguf, options).expect("it loads");
            let ids: Vec<u32> = (0..20).map(|i| i * 37 % 1000).collect();
            lm.start().read(&ids).expect("it reads").to_vec1().expect("f32")
        };
        let (ours, theirs) = (logits(&DecoderOptions::default()), logits(&options));
        let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        let apart = length(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b)) / length(&mut ours.iter().copied());
        println!("{}: {apart}", blocks.name);
        assert!(apart < 0.05, "{}: {apart}", blocks.name);
    }
    std::fs::remove_dir_all(&dir).expect("it is removed");
}

/// A real encoder, where it has been pulled: 1,024 texts of 128 tokens.
#[test]
#[ignore = "a measurement; run by tools/gpu.sh"]
fn encoders() {
    let cache = std::env::var_os("ADVENTURES_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/adventures")));
    let dir = cache.expect("a cache").join("models/all-minilm-l6-v2");
    if !dir.is_dir() {
        eprintln!("skipped: {} is absent", dir.display());
        return;
    }
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread starts"));
    let checkpoint = Checkpoint::open(&dir).expect("it opens");
    let (texts, length) = (1024, 128);
    let ids = (0..(texts * length) as u32).map(|i| 1000 + i * 37 % 20_000).collect();
    let batch = Batch { ids, lengths: vec![length; texts], ..Batch::default() };
    for precision in [Precision::F32, Precision::Bf16] {
        let encoder = encoder::load(&checkpoint, precision, pool.clone(), Some(&device())).expect("it loads");
        encoder.encode(&batch).expect("it encodes");
        let start = Instant::now();
        encoder.encode(&batch).expect("it encodes");
        let per_second = (texts * length) as f64 / start.elapsed().as_secs_f64();
        println!("{}", json!({"model": format!("all-MiniLM-L6-v2 {}", precision.name()), "tokens_per_s": per_second}));
    }
}
