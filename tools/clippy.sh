#!/usr/bin/env bash
# Clippy in place of rustc, as RUSTC_WORKSPACE_WRAPPER of `cargo build`: this workspace's crates are checked against what is
# built already, as `cargo clippy` would, which has all dependencies checked anew. No code is made of them; cargo finds empty files
# where it looks for it.
set -euo pipefail
args=() last='' name='' suffix='' folder='' kind=''
for arg in "$@"; do
    case $arg in
    --emit=*) arg=--emit=dep-info,metadata ;;
    extra-filename=*) suffix=${arg#*=} ;;
    *=*.rlib)
        what=${arg%.rlib}.rmeta
        # Some have no metadata of their own.
        [[ -e ${what#*=} ]] && arg=$what
        ;;
    esac
    case $last in
    --crate-name) name=$arg ;;
    --crate-type) kind=$arg ;;
    --out-dir) folder=$arg ;;
    esac
    last=$arg args+=("$arg")
done
# Build scripts run; and cargo asks for versions.
[[ $name && $name != build_script_* ]] || exec clippy-driver "$@"
clippy-driver "${args[@]}"
if [[ $kind == lib || $kind == rlib ]]; then
    touch "$folder/lib$name$suffix.rlib"
else
    touch "$folder/$name$suffix"
fi
