//! Encoders on candle's tensors, as they run on an accelerator, against the kernels of this crate; see `device.rs`.

use adventures::Precision;
use adventures::checkpoint::Checkpoint;
use adventures::models::{Batch, Encoder, Rows, encoder};
use candle_core::Device;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const HIDDEN: usize = 48;
const INNER: usize = 80;
const LAYERS: usize = 4;
const HEADS: usize = 4;
const WORDS: usize = 90;
const POSITIONS: usize = 300;

fn device() -> Device {
    let name = std::env::var("ADVENTURES_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    adventures::device(&name).expect("the device is there")
}

/// A checkpoint of random weights.
struct Tiny {
    config: Value,
    tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
    state: u64,
}

impl Tiny {
    fn new(model_type: &str, fields: &Value) -> Self {
        let mut config = json!({
            "model_type": model_type, "vocab_size": WORDS, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "intermediate_size": INNER, "max_position_embeddings": POSITIONS,
        });
        for (name, value) in fields.as_object().expect("fields") {
            config[name] = value.clone();
        }
        Self { config, tensors: Vec::new(), state: 7 }
    }

    /// A number from -1 to 1, of `SplitMix64`.
    fn number(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn tensor(&mut self, name: &str, shape: &[usize], mean: f32, spread: f32) {
        let count = shape.iter().product();
        let bytes = (0..count).flat_map(|_| (mean + spread * self.number()).to_le_bytes()).collect();
        self.tensors.push((name.to_owned(), shape.to_vec(), bytes));
    }

    fn table(&mut self, name: &str, rows: usize, width: usize) {
        self.tensor(name, &[rows, width], 0.0, 1.0);
    }

    fn norm(&mut self, name: &str, bias: bool) {
        self.tensor(&format!("{name}.weight"), &[HIDDEN], 1.0, 0.3);
        if bias {
            self.tensor(&format!("{name}.bias"), &[HIDDEN], 0.0, 0.3);
        }
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize, bias: bool) {
        self.tensor(&format!("{name}.weight"), &[outputs, inputs], 0.0, 0.4);
        if bias {
            self.tensor(&format!("{name}.bias"), &[outputs], 0.0, 0.3);
        }
    }

    fn write(self, dir: &Path) {
        std::fs::create_dir_all(dir).expect("a directory");
        std::fs::write(dir.join("config.json"), self.config.to_string()).expect("it is written");
        let views = self.tensors.iter().map(|(name, shape, bytes)| {
            (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor"))
        });
        serialize_to_file(views, None, &dir.join("model.safetensors")).expect("it is written");
    }
}

fn bert(model_type: &str, types: usize) -> Tiny {
    let mpnet = model_type == "mpnet";
    let mut tiny = Tiny::new(model_type, &json!({"type_vocab_size": types, "pad_token_id": 1}));
    tiny.table("embeddings.word_embeddings.weight", WORDS, HIDDEN);
    tiny.table("embeddings.position_embeddings.weight", POSITIONS, HIDDEN);
    if types > 0 {
        tiny.table("embeddings.token_type_embeddings.weight", types, HIDDEN);
    }
    tiny.norm("embeddings.LayerNorm", true);
    if mpnet {
        tiny.table("encoder.relative_attention_bias.weight", 32, HEADS);
    }
    let names = if mpnet {
        ["attn.q", "attn.k", "attn.v", "attn.o", "LayerNorm"]
    } else {
        ["self.query", "self.key", "self.value", "output.dense", "output.LayerNorm"]
    };
    for i in 0..LAYERS {
        let layer = format!("encoder.layer.{i}");
        for name in &names[..4] {
            tiny.linear(&format!("{layer}.attention.{name}"), HIDDEN, HIDDEN, true);
        }
        tiny.norm(&format!("{layer}.attention.{}", names[4]), true);
        tiny.linear(&format!("{layer}.intermediate.dense"), INNER, HIDDEN, true);
        tiny.linear(&format!("{layer}.output.dense"), HIDDEN, INNER, true);
        tiny.norm(&format!("{layer}.output.LayerNorm"), true);
    }
    tiny
}

fn modern(biased: bool) -> Tiny {
    let fields = json!({"norm_bias": biased, "attention_bias": biased, "mlp_bias": biased, "local_attention": 20});
    let mut tiny = Tiny::new("modernbert", &fields);
    tiny.table("embeddings.tok_embeddings.weight", WORDS, HIDDEN);
    tiny.norm("embeddings.norm", biased);
    for i in 0..LAYERS {
        let layer = format!("layers.{i}");
        if i > 0 {
            tiny.norm(&format!("{layer}.attn_norm"), biased);
        }
        tiny.linear(&format!("{layer}.attn.Wqkv"), 3 * HIDDEN, HIDDEN, biased);
        tiny.linear(&format!("{layer}.attn.Wo"), HIDDEN, HIDDEN, biased);
        tiny.norm(&format!("{layer}.mlp_norm"), biased);
        tiny.linear(&format!("{layer}.mlp.Wi"), 2 * INNER, HIDDEN, biased);
        tiny.linear(&format!("{layer}.mlp.Wo"), HIDDEN, INNER, biased);
    }
    tiny.norm("final_norm", biased);
    tiny
}

fn nomic() -> Tiny {
    let fields =
        json!({"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS, "type_vocab_size": 2});
    let mut tiny = Tiny::new("nomic_bert", &fields);
    tiny.table("embeddings.word_embeddings.weight", WORDS, HIDDEN);
    tiny.table("embeddings.token_type_embeddings.weight", 2, HIDDEN);
    tiny.norm("emb_ln", true);
    for i in 0..LAYERS {
        let layer = format!("encoder.layers.{i}");
        tiny.linear(&format!("{layer}.attn.Wqkv"), 3 * HIDDEN, HIDDEN, false);
        tiny.linear(&format!("{layer}.attn.out_proj"), HIDDEN, HIDDEN, false);
        for name in ["fc11", "fc12"] {
            tiny.linear(&format!("{layer}.mlp.{name}"), INNER, HIDDEN, false);
        }
        tiny.linear(&format!("{layer}.mlp.fc2"), HIDDEN, INNER, false);
        tiny.norm(&format!("{layer}.norm1"), true);
        tiny.norm(&format!("{layer}.norm2"), true);
    }
    tiny
}

fn gte() -> Tiny {
    let fields = json!({"rope_theta": 20000, "rope_scaling": {"factor": 2.0, "type": "ntk"}, "type_vocab_size": 1});
    let mut tiny = Tiny::new("new", &fields);
    tiny.table("embeddings.word_embeddings.weight", WORDS, HIDDEN);
    tiny.table("embeddings.token_type_embeddings.weight", 1, HIDDEN);
    tiny.norm("embeddings.LayerNorm", true);
    for i in 0..LAYERS {
        let layer = format!("encoder.layer.{i}");
        tiny.linear(&format!("{layer}.attention.qkv_proj"), 3 * HIDDEN, HIDDEN, true);
        tiny.linear(&format!("{layer}.attention.o_proj"), HIDDEN, HIDDEN, true);
        tiny.linear(&format!("{layer}.mlp.up_gate_proj"), 2 * INNER, HIDDEN, false);
        tiny.linear(&format!("{layer}.mlp.down_proj"), HIDDEN, INNER, true);
        tiny.norm(&format!("{layer}.attn_ln"), true);
        tiny.norm(&format!("{layer}.mlp_ln"), true);
    }
    tiny
}

/// The encoder of the kernels, and that of the device.
fn both(dir: &Path, precision: Precision) -> [Box<dyn Encoder>; 2] {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread starts"));
    let checkpoint = Checkpoint::open(dir).expect("it opens");
    let load = |precision, device: Option<&Device>| {
        encoder::load(&checkpoint, precision, pool.clone(), device).expect("it loads")
    };
    [load(Precision::F32, None), load(precision, Some(&device()))]
}

fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("adventures-device-encoder-{}-{name}", std::process::id()))
}

/// Sequences of `lengths`, types of a model that has some.
fn batch(lengths: &[usize], types: usize) -> Batch {
    let count: usize = lengths.iter().sum();
    Batch {
        ids: (0..count as u32).map(|i| (i * i * 7 + i * 13) % WORDS as u32).collect(),
        lengths: lengths.to_vec(),
        types: if types > 1 { (0..count).map(|i| (i / 3 % types) as u8).collect() } else { Vec::new() },
        attended: Vec::new(),
    }
}

fn furthest(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_architecture_encodes_as_the_kernels() {
    let never = AtomicBool::new(false);
    for (name, tiny) in [
        ("bert", bert("bert", 2)),
        ("roberta", bert("roberta", 1)),
        ("xlm-roberta", bert("xlm-roberta", 1)),
        ("camembert", bert("camembert", 1)),
        ("mpnet", bert("mpnet", 0)),
        ("modernbert", modern(false)),
        ("modernbert-biased", modern(true)),
        ("nomic", nomic()),
        ("gte", gte()),
    ] {
        let dir = folder(name);
        tiny.write(&dir);
        let [ours, theirs] = both(&dir, Precision::F32);
        assert_eq!(
            (ours.hidden_size(), ours.context(), ours.token_types()),
            (theirs.hidden_size(), theirs.context(), theirs.token_types())
        );
        for lengths in [&[9][..], &[5, 5, 5], &[3, 250, 1, 40, 41], &[]] {
            let mut batch = batch(lengths, ours.token_types());
            for padded in [false, true] {
                if padded {
                    // Padding of a query, as ColBERT has it: read, but not attended to.
                    batch.attended =
                        lengths.iter().map(|length| length.div_ceil(2).max(length.saturating_sub(9))).collect();
                }
                for rows in [Rows::All, Rows::First] {
                    let encode = |encoder: &dyn Encoder| -> Vec<Vec<f32>> {
                        encoder.encode_rows(&batch, rows, &never).expect("it encodes").to_vec2().expect("f32")
                    };
                    let difference = furthest(&encode(theirs.as_ref()), &encode(ours.as_ref()));
                    assert!(difference <= 1e-4, "{name} {lengths:?} {padded} {rows:?}: {difference}");
                }
            }
        }
        let refused = [
            (batch(&[301], 1), "a sequence of 301 tokens; this model reads at most"),
            (Batch { ids: vec![90], lengths: vec![1], ..Batch::default() }, "token id 90"),
            (Batch { ids: vec![1], lengths: vec![1, 0], ..Batch::default() }, "a sequence of no tokens"),
        ];
        for (batch, message) in refused {
            let error = theirs.encode(&batch).expect_err("it is refused").to_string();
            assert!(error.contains(message), "{name}: {error}");
        }
        let error = theirs.encode_rows(&batch(&[9], 1), Rows::All, &AtomicBool::new(true)).expect_err("it stops");
        assert_eq!(error.to_string(), "cancelled");
        std::fs::remove_dir_all(&dir).expect("it is removed");
    }
}

/// Of eight bits of a number, some are lost in each layer.
#[test]
fn bfloat16_is_near_and_bytes_are_refused() {
    let dir = folder("brief");
    bert("bert", 2).write(&dir);
    let [ours, theirs] = both(&dir, Precision::Bf16);
    let batch = batch(&[30, 7], 2);
    let encode = |encoder: &dyn Encoder| -> Vec<Vec<f32>> {
        encoder.encode(&batch).expect("it encodes").to_vec2().expect("f32")
    };
    for (got, want) in encode(theirs.as_ref()).iter().zip(encode(ours.as_ref())) {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let cosine = dot(got, &want) / (dot(got, got) * dot(&want, &want)).sqrt();
        assert!(cosine > 0.995 && cosine < 0.999_999_9, "{cosine}");
    }
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread starts"));
    let checkpoint = Checkpoint::open(&dir).expect("it opens");
    let error = encoder::load(&checkpoint, Precision::Int8, pool, Some(&device())).err().expect("it is refused");
    assert!(error.to_string().starts_with("precision=\"int8\": on c"), "{error}");
    std::fs::remove_dir_all(&dir).expect("it is removed");
}
