//! sentence-transformers' Dense module: a linear layer over the pooled vector, or over each token's.

use crate::checkpoint::Checkpoint;
use crate::error::{Result, invalid, unsupported};
use crate::kernels::panels::{Kernel, Linear, Precision, Rounded, Then};
use crate::kernels::threads::Threads;
use serde_json::Value;
use std::path::Path;

/// `activation(x wᵀ + b)`.
pub(crate) struct Dense {
    linear: Linear,
    tanh: bool,
}

impl Dense {
    /// Reads the module in `folder`.
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let config = checkpoint.config();
        let size = |name: &str| config.get(name).and_then(Value::as_u64).unwrap_or(0) as usize;
        let (inputs, outputs) = (size("in_features"), size("out_features"));
        if inputs == 0 || outputs == 0 {
            return invalid!("{}: in_features {inputs}, out_features {outputs}", folder.display());
        }
        if config.get("use_residual").and_then(Value::as_bool) == Some(true) {
            return unsupported!("{}: use_residual=true", folder.display());
        }
        let activation = config.get("activation_function").and_then(Value::as_str).unwrap_or("Tanh");
        let tanh = match activation.rsplit('.').next().unwrap_or_default() {
            "Tanh" => true,
            "Identity" => false,
            _ => {
                return unsupported!(
                    "{}: activation_function {activation:?}; supported are Tanh and Identity",
                    folder.display()
                );
            }
        };
        let weight = checkpoint.tensor("linear.weight", &[outputs, inputs])?;
        let bias = match config.get("bias").and_then(Value::as_bool) {
            Some(false) => Vec::new(),
            _ => checkpoint.tensor("linear.bias", &[outputs])?,
        };
        Ok(Self { linear: Linear::pack(&weight, &bias, inputs, Kernel::best(Precision::F32))?, tanh })
    }

    /// Returns the module that multiplies with the tensor `name`, without bias or activation.
    pub(crate) fn identity(checkpoint: &Checkpoint, name: &str) -> Result<Self> {
        let shape = checkpoint.raw(name)?.shape;
        let &[_, inputs] = shape else {
            return invalid!("{}: tensor {name:?} has shape {shape:?}, no matrix", checkpoint.dir().display());
        };
        let weight = checkpoint.tensor(name, shape)?;
        Ok(Self { linear: Linear::pack(&weight, &[], inputs, Kernel::best(Precision::F32))?, tanh: false })
    }

    /// Returns what comes of row-major `x`.
    pub(crate) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len() / self.linear.inputs() * self.linear.outputs()];
        self.linear.apply(x, &mut out, Then::Store, Threads::One, &mut Rounded::new());
        if self.tanh {
            for x in &mut out {
                *x = x.tanh();
            }
        }
        out
    }
}

/// Returns how long vectors are after `modules`, of those that are `width` long before; fails where they do not fit each other.
pub(crate) fn outputs(modules: &[Dense], width: usize, root: &Path) -> Result<usize> {
    modules.iter().try_fold(width, |width, dense| {
        if dense.linear.inputs() != width {
            return invalid!("{}: a Dense module reads {} numbers of {width}", root.display(), dense.linear.inputs());
        }
        Ok(dense.linear.outputs())
    })
}
