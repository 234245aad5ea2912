//! Operands of bfloat16, as the tiles of AMX read them; so do products of AVX-512.

use super::{Operands, Place, Qkv, Rounded, Strip};
use crate::kernels::amx::Tiles;
use crate::kernels::panels::tile::{Beside, Tile};
use crate::kernels::panels::{Precision, amx, dot};
use std::arch::x86_64::__m512;

/// What does not depend on where queries, keys and values come from.
macro_rules! weights {
    ($precision:expr, $parts:literal) => {
        #[inline(always)]
        fn steps(inputs: usize) -> (usize, usize) {
            amx::steps($precision, inputs)
        }

        #[inline(always)]
        fn weights(_: *mut f32, rows: usize, keys: usize, rounded: &mut Rounded) -> Place<*mut u32> {
            let stride = Self::steps(keys).0;
            Place { first: rounded.room(rows * stride).as_mut_ptr(), stride }
        }

        #[inline(always)]
        fn weight(score: __m512, largest: __m512, scale: __m512) -> __m512 {
            // SAFETY: a kernel of bfloat16 is chosen where these instructions are.
            #[allow(unsafe_code)]
            unsafe {
                amx::weight::<$parts>(score, largest, scale)
            }
        }

        #[inline(always)]
        #[allow(unsafe_code)]
        unsafe fn put(weights: [__m512; 2], at: usize, row: *mut u32, sums: &mut [__m512; 2]) {
            // SAFETY: as above; the caller has the room.
            unsafe {
                let parts = amx::put::<$parts>(weights, at, row);
                for part in parts {
                    sums[0] = amx::add_pairs(sums[0], part);
                }
            }
        }
    };
}

macro_rules! floats {
    ($tile:ty, $precision:expr, $parts:literal) => {
        impl Operands for $tile {
            type Number = f32;

            weights!($precision, $parts);

            #[inline(always)]
            fn numbers(qkv: Qkv<'_>) -> &[f32] {
                match qkv {
                    Qkv::Floats(qkv) => qkv,
                    Qkv::Rounded(_) => unreachable!("rounded rows have a kind of their own; this is a bug"),
                }
            }

            #[inline(always)]
            #[allow(unsafe_code)]
            unsafe fn rows(
                x: Place<*const f32>,
                rows: usize,
                inputs: usize,
                rounded: &mut Rounded,
            ) -> Place<*const u32> {
                let stride = Self::steps(inputs).0;
                let out = Place { first: rounded.room(rows * stride).as_mut_ptr(), stride };
                // SAFETY: a kernel of bfloat16 is chosen where these instructions are; the caller has the rows.
                unsafe { amx::round_rows::<$parts>(x, rows, inputs, out) };
                Place { first: out.first.cast_const(), stride }
            }

            #[inline(always)]
            fn pack<'a>(rows: impl Fn(usize) -> &'a [f32], count: usize, panel: &mut [Strip]) {
                amx::pack_rows::<$parts>(rows, count, panel);
            }

            #[inline(always)]
            fn pack_columns<'a>(rows: impl Fn(usize) -> &'a [f32], count: usize, panel: &mut [Strip]) {
                amx::pack_columns::<$parts>(rows, count, panel);
            }
        }
    };
}

floats!(amx::Brief, Precision::Bf16, 1);
floats!(amx::Split, Precision::Bf16x2, 2);
floats!(dot::x86::Bf16, Precision::Bf16, 1);

/// Of rows that are bfloat16 already, 32 inputs in a line of the cache.
pub(super) struct Halves;

impl Tile for Halves {
    const ROWS: usize = amx::Brief::ROWS;
    type V = __m512;
    type State = Tiles;

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn multiply<B: Beside>(
        tiles: &mut Tiles,
        rows: usize,
        a: Place<*const u32>,
        panel: &[Strip],
        out: Place<*mut f32>,
        beside: &mut B,
    ) {
        // SAFETY: the caller's promise.
        unsafe { amx::Brief::multiply(tiles, rows, a, panel, out, beside) }
    }
}

impl Operands for Halves {
    type Number = u16;

    weights!(Precision::Bf16, 1);

    #[inline(always)]
    fn numbers(qkv: Qkv<'_>) -> &[u16] {
        match qkv {
            // SAFETY: an element is two numbers of 16 bits, each of any content.
            #[allow(unsafe_code)]
            Qkv::Rounded(qkv) => unsafe { std::slice::from_raw_parts(qkv.as_ptr().cast(), 2 * qkv.len()) },
            Qkv::Floats(_) => unreachable!("numbers of f32 have kinds of their own; this is a bug"),
        }
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn rows(x: Place<*const u16>, _: usize, _: usize, _: &mut Rounded) -> Place<*const u32> {
        Place { first: x.first.cast(), stride: x.stride / 2 }
    }

    #[inline(always)]
    fn pack<'a>(rows: impl Fn(usize) -> &'a [u16], count: usize, panel: &mut [Strip]) {
        amx::pack_rounded_rows(rows, count, panel);
    }

    #[inline(always)]
    fn pack_columns<'a>(rows: impl Fn(usize) -> &'a [u16], count: usize, panel: &mut [Strip]) {
        amx::pack_rounded_columns(rows, count, panel);
    }
}
