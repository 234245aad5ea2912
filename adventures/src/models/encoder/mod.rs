//! Encoders over packed batches: sequences are never padded.
//!
//! Linear layers run over the tokens of many sequences at once, attention over each sequence alone, so a vector does not depend on
//! what is in the batch beside it. [`device`] is the same on an accelerator, where that holds but for rounding.

mod bert;
mod device;
mod gte;
mod modern;
mod nomic;
mod positions;
mod source;
mod transformer;

use super::Encoder;
use crate::checkpoint::Checkpoint;
use crate::device::name;
use crate::error::{Result, invalid, unsupported};
use crate::kernels::attention::Heads;
use crate::kernels::panels::{Kernel, Linear, PANEL, Precision};
use crate::kernels::threads::Team;
use candle_core::{DType, Device};
use rayon::prelude::*;
use serde_json::Value;
use source::Pack;
use std::sync::Arc;
use transformer::{Layer, Transformer};

/// What reads the weights of one architecture.
type Load<L> = fn(&Checkpoint, &Options) -> Result<Transformer<L>>;

/// The architectures by `model_type` of `config.json`.
fn architectures<L: Pack>() -> [(&'static str, Load<L>); 9] {
    [
        ("bert", bert::load),
        ("camembert", bert::load),
        ("gte", gte::load),
        ("modernbert", modern::load),
        ("mpnet", bert::load),
        ("new", gte::load),
        ("nomic_bert", nomic::load),
        ("roberta", bert::load),
        ("xlm-roberta", bert::load),
    ]
}

/// How an encoder is to compute.
struct Options {
    precision: Precision,
    pool: Arc<rayon::ThreadPool>,
}

/// What multiplies in a layer.
///
/// Values rounded to bytes are more than half of what all layers lose by that: 2.9e-4 of 5.1e-4, as a mean of what the cosine to f32
/// is short of 1 on `MiniLM`; queries and keys are 0.2e-4.
struct Kernels {
    /// Of queries, too.
    keys: Kernel,
    values: Kernel,
    rest: Kernel,
}

/// Returns the encoder that the checkpoint's `model_type` names.
///
/// It computes on `pool`, or, where there is one, on `device`, which has no products of bytes.
pub fn load(
    checkpoint: &Checkpoint,
    precision: Precision,
    pool: Arc<rayon::ThreadPool>,
    device: Option<&Device>,
) -> Result<Box<dyn Encoder>> {
    let options = Options { precision, pool };
    match device {
        None => Ok(Box::new(read::<Linear>(checkpoint, &options)?)),
        Some(device) => {
            let dtype = match precision {
                Precision::F32 | Precision::Bf16x2 => DType::F32,
                Precision::Bf16 => DType::BF16,
                Precision::Int8 => {
                    return unsupported!(
                        "precision=\"int8\": on {} \"f32\" and \"bf16\" are supported",
                        name(Some(device))
                    );
                }
            };
            Ok(Box::new(device::OnDevice::new(read(checkpoint, &options)?, dtype, device)?))
        }
    }
}

/// Reads the weights of the architecture that `model_type` names.
fn read<L: Pack>(checkpoint: &Checkpoint, options: &Options) -> Result<Transformer<L>> {
    let kind = checkpoint.config().get("model_type").and_then(Value::as_str).unwrap_or("none");
    let known = architectures::<L>();
    let Some((_, load)) = known.iter().find(|(name, _)| *name == kind) else {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let place = checkpoint.dir().display();
        return unsupported!("{place}: model_type {kind:?}; supported encoders are {}", names.join(", "));
    };
    load(checkpoint, options)
}

impl Options {
    fn kernels(&self) -> Kernels {
        let rest = Kernel::best(self.precision);
        let values = if self.precision == Precision::Int8 { Kernel::finer() } else { rest };
        Kernels { keys: if values.tiles_of_halves() { values } else { rest }, values, rest }
    }

    /// Returns the threads that share a text: no more than its narrowest product has parts for.
    fn team(&self, heads: Heads) -> Team {
        Team::new(Arc::clone(&self.pool), heads.count * heads.dim / PANEL)
    }

    /// Returns the layers that `load` reads by their number.
    fn layers<L: Pack>(
        &self,
        count: usize,
        load: impl Fn(usize) -> Result<Layer<L>> + Send + Sync,
    ) -> Result<Vec<Layer<L>>> {
        let together: Result<_> = self.pool.install(|| (0..count).into_par_iter().map(&load).collect());
        // Which of several bad layers a thread finds first is chance; the error is of the first one.
        together.or_else(|_| (0..count).map(load).collect())
    }
}

/// Returns the heads that a hidden state splits into; fails where it does not.
fn heads(checkpoint: &Checkpoint, hidden: usize, count: usize) -> Result<Heads> {
    if count == 0 || hidden == 0 || !hidden.is_multiple_of(count) {
        let place = checkpoint.dir().display();
        return invalid!("{place}: hidden_size {hidden} does not split into num_attention_heads {count}");
    }
    Ok(Heads { count, dim: hidden / count })
}
