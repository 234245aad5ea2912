//! How the program is linked.

use std::env::var;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| var(name).is_ok_and(|found| found == value);
    if !(is("TARGET", "x86_64-unknown-linux-gnu") && is("HOST", "x86_64-unknown-linux-gnu")) {
        return;
    }
    // This target's linker is rust-lld. Of equal functions, of which generics make many, it keeps one.
    println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
    // Relocations in a tenth of the room, where the system's loader knows them: glibc from 2.36 on.
    let version = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let numbers = version.strip_prefix("glibc ").and_then(|version| version.split_once('.'));
    let known = numbers.and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    if known.is_some_and(|version| version >= (2, 36)) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
