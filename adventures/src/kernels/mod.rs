//! CPU kernels. Each has a plain version that says what it computes, and versions of the same code that are compiled for
//! the vector instructions at hand and chosen at run time.

#![allow(
    clippy::inline_always,
    reason = "bodies are compiled inside their callers, with the instructions enabled there"
)]

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
pub(crate) mod attention;
pub(crate) mod causal;
pub(crate) mod late;
pub(crate) mod math;
pub(crate) mod paged;
pub(crate) mod panels;
pub(crate) mod quant;
pub(crate) mod threads;
pub(crate) mod vector;

/// Defines functions compiled three times: for AVX-512, for AVX2 with FMA, and for any CPU; the best is chosen at run time.
///
/// The body sees a constant `FMA`: whether a fused multiply-add is one instruction (elsewhere it is a slow library call).
/// Loops are written over blocks of [`LANES`] numbers, which the compiler turns into vectors.
macro_rules! vectorized {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name($($arg: $type),*) {
            #[inline(always)]
            fn generic<const FMA: bool>($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $type),*) { generic::<true>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) { generic::<true>($($arg),*) }
                if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("fma")
                {
                    // SAFETY: the instructions were just detected.
                    #[allow(unsafe_code)]
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the instructions were just detected.
                    #[allow(unsafe_code)]
                    return unsafe { avx2($($arg),*) };
                }
            }
            generic::<false>($($arg),*);
        }
    )*};
}
pub(crate) use vectorized;

/// How many numbers a block has: one AVX-512 register, two of AVX2.
pub(crate) const LANES: usize = 16;
