"""The part of adventures that computes, built with CUDA; `adventures` loads it by itself."""
