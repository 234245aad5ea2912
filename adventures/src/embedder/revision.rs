//! How vectors of the same weights are told apart.

use super::EmbedderOptions;
use crate::kernels::panels::Precision;
use crate::models::decoder::Quantize;

const UNNORMALIZED: &str = "unnormalized";

impl EmbedderOptions {
    /// Returns the revision of the vectors: that of the weights, and after it what was done to them, as in
    /// `1110a243+int8`.
    pub fn revision(&self, weights: &str) -> String {
        let rounded = match (self.quantize, self.precision) {
            (Some(quantize), _) => Some(quantize.name()),
            (None, Precision::F32) => None,
            (None, precision) => Some(precision.name()),
        };
        let marks = rounded.into_iter().chain(self.unnormalized.then_some(UNNORMALIZED));
        marks.fold(weights.to_owned(), |revision, mark| format!("{revision}+{mark}"))
    }

    /// Returns the revision of the weights, and options that make vectors of this revision of them: what
    /// [`revision`](Self::revision) has put together.
    pub fn of_revision(revision: &str) -> (&str, Self) {
        let (mut weights, mut options) = (revision, Self::default());
        while let Some((rest, mark)) = weights.rsplit_once('+') {
            if mark == UNNORMALIZED {
                options.unnormalized = true;
            } else if let Ok(quantize) = mark.parse::<Quantize>() {
                options.quantize = Some(quantize);
            } else if let Some(precision) =
                [Precision::Bf16x2, Precision::Bf16, Precision::Int8].into_iter().find(|p| p.name() == mark)
            {
                options.precision = precision;
            } else {
                break;
            }
            weights = rest;
        }
        (weights, options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_together_is_taken_apart() {
        let every = [
            EmbedderOptions::default(),
            EmbedderOptions { precision: Precision::Int8, ..EmbedderOptions::default() },
            EmbedderOptions { precision: Precision::Bf16x2, ..EmbedderOptions::default() },
            EmbedderOptions { precision: Precision::Bf16, unnormalized: true, ..EmbedderOptions::default() },
            EmbedderOptions { quantize: Some(Quantize::Q4K), ..EmbedderOptions::default() },
            EmbedderOptions { quantize: Some(Quantize::Q8_0), unnormalized: true, ..EmbedderOptions::default() },
        ];
        for options in every {
            for weights in ["", "1110a243", "local-0123456789ab+local-ba9876543210"] {
                let revision = options.revision(weights);
                let (found, made) = EmbedderOptions::of_revision(&revision);
                let told = |o: &EmbedderOptions| (o.quantize.map(Quantize::name), o.precision.name(), o.unnormalized);
                assert_eq!((found, told(&made)), (weights, told(&options)), "{revision}");
            }
        }
        assert_eq!(EmbedderOptions::of_revision("a+int7").0, "a+int7");
    }
}
