//! The tiles of Intel's AMX: registers of sixteen rows of 64 bytes, and products of two of them in one instruction.
//!
//! Registers of tiles are a thread's own. What they are set up for is given back behind each piece of work, so that a thread
//! that does something else carries nothing. The compiler knows no tiles, and never uses them itself: what one block of
//! assembly leaves in them, the next finds.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Rows of a tile, and elements of four bytes in each.
pub(crate) const SIDE: usize = 16;

/// Whether the CPU has tiles and the system lets this process use them, which it is asked for once.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| detected() && permitted())
}

fn detected() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    let vectors = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma");
    if !vectors || __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & (BF16 | TILE | INT8) != BF16 | TILE | INT8 {
        return false;
    }
    // Some virtual machines have tiles and not the page that describes them: there was never another palette 1.
    let palette = if __cpuid(0).eax < 0x1d { return true } else { __cpuid_count(0x1d, 1) };
    palette.ebx & 0xffff == 64 && palette.ebx >> 16 >= 8 && palette.ecx & 0xffff == 16
}

/// Asks Linux for the tiles' registers, which are more than it saves of a process that did not ask.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and reads no memory; it fails where the kernel does not know it.
    #[allow(unsafe_code)]
    unsafe {
        libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0
    }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Of each tile, its rows and the bytes of a row; `(0, 0)` of one that is not used.
pub(crate) type Shapes = [(u8, u8); 8];

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Setup {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    columns: [u16; 16],
    rows: [u8; 16],
}

/// The tiles of the thread that it is made on, which has no other at the time.
#[derive(Default)]
pub(crate) struct Tiles(Option<Shapes>, PhantomData<*const ()>);

impl Tiles {
    /// Sets them up, which clears them, unless they are so already. Up to 16 rows of up to 64 bytes, where [`available`] holds.
    #[inline(always)]
    pub(crate) fn fit(&mut self, shapes: Shapes) {
        if self.0 != Some(shapes) {
            self.set(shapes);
        }
    }

    #[inline(never)]
    fn set(&mut self, shapes: Shapes) {
        assert!(available() && shapes.iter().all(|(rows, bytes)| *rows <= 16 && *bytes <= 64), "tiles; this is a bug");
        self.0 = Some(shapes);
        let mut setup = Setup { palette: 1, start_row: 0, reserved: [0; 14], columns: [0; 16], rows: [0; 16] };
        for (tile, (rows, bytes)) in shapes.into_iter().enumerate() {
            (setup.rows[tile], setup.columns[tile]) = (rows, u16::from(bytes));
        }
        // SAFETY: the CPU and the system have tiles, and of these shapes; the instruction reads the operand's 64 bytes.
        #[allow(unsafe_code)]
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const setup, options(nostack, preserves_flags, readonly));
        }
    }
}

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        if self.0.is_some() {
            // SAFETY: the tiles were set up, and nothing else uses them on this thread.
            #[allow(unsafe_code)]
            unsafe {
                asm!("tilerelease", options(nostack, preserves_flags, nomem));
            }
        }
    }
}
