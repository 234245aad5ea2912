use super::build::{Builder, string};
use super::*;

fn small() -> Builder {
    Builder::new()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .f32("llama.rope.freq_base", 10_000.0)
        .bool("tokenizer.ggml.add_bos_token", true)
        .raw("llama.context_length", 10, &2048u64.to_le_bytes())
        .raw("negative", 5, &(-7i32).to_le_bytes())
        .strs("tokenizer.ggml.tokens", &["<s>", "</s>", "▁a"])
        .f32s("tokenizer.ggml.scores", &[0.0, -1.0, -2.5])
        .array("nested", 9, &[[&4u32.to_le_bytes()[..], &1u64.to_le_bytes(), &9u32.to_le_bytes()].concat()])
        .tensor("a", GgmlType::F32, &[2, 3], &[1; 24])
        .tensor("b", GgmlType::Q4_1, &[64, 2], &[2; 80])
}

fn error(bytes: Vec<u8>) -> String {
    Gguf::from_bytes(bytes).expect_err("the file is wrong").to_string()
}

fn fails(builder: &Builder, expected: &str) {
    let message = error(builder.bytes());
    assert!(message.contains(expected), "{message:?} does not say {expected:?}");
}

#[test]
fn reads_what_was_written() {
    let gguf = Gguf::from_bytes(small().bytes()).expect("a valid file");
    let m = &gguf.metadata;
    assert_eq!(m.str("general.architecture").unwrap(), "llama");
    assert_eq!(m.u32("llama.block_count").unwrap(), 2);
    assert_eq!(m.u32("llama.context_length").unwrap(), 2048);
    assert_eq!(m.get::<i32>("negative").unwrap(), -7);
    assert!((m.f32("llama.rope.freq_base").unwrap() - 10_000.0).abs() < f32::EPSILON);
    assert!(m.bool("tokenizer.ggml.add_bos_token").unwrap());
    assert_eq!(m.list::<&str>("tokenizer.ggml.tokens").unwrap(), ["<s>", "</s>", "▁a"]);
    assert_eq!(m.list::<f32>("tokenizer.ggml.scores").unwrap(), [0.0, -1.0, -2.5]);
    let inner = m.list::<Array<'_>>("nested").unwrap();
    assert!(matches!(inner[0].iter().next(), Some(Value::Unsigned(9))));
    assert_eq!(m.find::<u32>("absent").unwrap(), None);

    assert_eq!(gguf.tensor_names().collect::<Vec<_>>(), ["a", "b"]);
    let b = gguf.tensor("b").unwrap();
    assert_eq!((b.name, b.dtype, b.shape, b.data), ("b", GgmlType::Q4_1, &[64, 2][..], &[2u8; 80][..]));
}

#[test]
fn getters_name_the_key_and_what_was_found() {
    let gguf = Gguf::from_bytes(small().bytes()).expect("a valid file");
    let m = &gguf.metadata;
    for (message, expected) in [
        (m.u32("llama.head_count").unwrap_err(), "metadata key \"llama.head_count\" is missing"),
        (m.u32("negative").unwrap_err(), "\"negative\" must be an unsigned 32-bit integer, it is the integer -7"),
        (m.u32("general.architecture").unwrap_err(), "it is the string \"llama\""),
        (m.str("tokenizer.ggml.tokens").unwrap_err(), "must be a string in UTF-8, it is an array of 3 string"),
        (m.list::<u32>("tokenizer.ggml.tokens").unwrap_err(), "\"tokenizer.ggml.tokens[0]\""),
        (gguf.tensor("c").unwrap_err(), "no tensor \"c\""),
    ] {
        assert!(message.to_string().contains(expected), "{message}");
    }
}

#[test]
fn wrong_headers_are_refused() {
    fails(&Builder { version: 1, ..small() }, "GGUF version 1");
    fails(&Builder { version: 4, ..small() }, "GGUF version 4");
    fails(&Builder { version: 3u32.swap_bytes(), ..small() }, "big-endian");
    assert!(error(b"GGML\0\0\0\0".to_vec()).contains("not a GGUF file: it starts with \"GGML\""));
    assert!(error(vec![]).contains("not a GGUF file"));
    assert!(error(b"GG".to_vec()).contains("not a GGUF file"));
    for huge in [1 << 20, 1 << 40, u64::MAX] {
        assert!(error(small().counted(huge, 0)).contains("tensors"));
        assert!(error(small().counted(0, huge)).contains("metadata keys"));
    }
    assert!(error(small().counted(200, 9)).contains("the file has room for"));
}

#[test]
fn wrong_metadata_is_refused() {
    let b = Builder::new;
    fails(&b().u32("a", 1).u32("a", 2), "metadata key \"a\" is there twice");
    fails(&b().raw("a", 13, &[0; 8]), "unknown metadata value type 13");
    fails(&b().raw("a", 7, &[2]), "the byte 2 is not a boolean");
    fails(&b().raw("", 4, &[0; 8]), "the metadata key at byte 24 has 0 bytes");
    fails(&b().raw("a", 8, &u64::MAX.to_le_bytes()), "has 18446744073709551615 bytes");
    fails(&b().raw("a", 8, &(17u64 << 20).to_le_bytes()), "at most 16777216");
    fails(&b().raw("a", 8, &100u64.to_le_bytes()), "the file ends at byte");
    let array = |element: u32, len: u64, rest: &[u8]| [&element.to_le_bytes()[..], &len.to_le_bytes(), rest].concat();
    fails(&b().raw("a", 9, &array(4, 1 << 62, &[])), "does not fit");
    fails(&b().raw("a", 9, &array(4, u64::MAX, &[])), "does not fit");
    fails(&b().raw("a", 9, &array(0, 9, &[0; 8])), "an array of 9 u8 does not fit in the 8 bytes");
    fails(&b().raw("a", 9, &array(7, 2, &[1, 7])), "the byte 7 is not a boolean");
    fails(&b().raw("a", 9, &array(99, 1, &[0; 8])), "unknown metadata value type 99");
    let deep = (0..6).fold(array(0, 0, &[]), |inner, _| array(9, 1, &inner));
    fails(&b().raw("a", 9, &deep), "nested more than 4 deep");
    let mut not_utf8 = b();
    not_utf8.keys.push([&string([0xff, 0xfe])[..], &4u32.to_le_bytes(), &[0; 4]].concat());
    fails(&not_utf8, "is not UTF-8");
    for (alignment, ok) in [(0, false), (1, true), (3, false), (64, true), (65_536, true), (131_072, false)] {
        assert_eq!(Gguf::from_bytes(b().u32("general.alignment", alignment).bytes()).is_ok(), ok, "{alignment}");
    }
    fails(&b().str("general.alignment", "32"), "general.alignment must be a u32, it is a string");
    fails(&b().raw("split.count", 2, &3u16.to_le_bytes()), "one of 3 parts");
}

#[test]
fn wrong_tensors_are_refused() {
    let b = || Builder::new().str("room", "for the smallest entry");
    let f32s = GgmlType::F32.number();
    fails(&b().entry("", &[1], f32s, 0), "has 0 bytes, 1 to 65535");
    fails(&b().entry("t", &[], f32s, 0), "tensor \"t\": it has 0 dimensions");
    fails(&b().entry("t", &[1; 5], f32s, 0), "it has 5 dimensions");
    fails(&b().entry("t", &[4, 0], f32s, 0), "a dimension of [4, 0] is 0");
    fails(&b().entry("t", &[4], 4, 0), "tensor \"t\": unknown type 4");
    fails(&b().entry("t", &[4], 1000, 0), "unknown type 1000");
    fails(
        &b().entry("t", &[33], GgmlType::Q8_0.number(), 0),
        "rows of 33 weights do not divide into Q8_0 blocks of 32",
    );
    fails(&b().entry("t", &[1 << 40, 1 << 40], f32s, 0), "is too large");
    fails(&b().entry("t", &[1 << 62], f32s, 0), "is too large");
    fails(&b().entry("t", &[4], f32s, 7), "offset 7 is not a multiple of the alignment 32");
    fails(&b().entry("t", &[4], f32s, u64::MAX - 31), "is it cut short?");
    fails(&b().entry("t", &[16], f32s, u64::MAX - 31), "is too large");
    fails(&b().entry("t", &[4], f32s, 1 << 63), "is it cut short?");
    fails(&b().entry("t", &[4], f32s, 0), "tensor \"t\" needs 16 bytes from byte");
    fails(&b().tensor("t", GgmlType::F32, &[1], &[0; 4]).tensor("t", GgmlType::F32, &[1], &[0; 4]), "is there twice");
    fails(&b().tensor("t", GgmlType::F32, &[16], &[0; 64]).entry("u", &[1], f32s, 32), "\"t\" and \"u\" overlap");
}

#[test]
fn a_file_cut_at_any_byte_is_an_error() {
    let whole = small().bytes();
    for len in 0..whole.len() {
        assert!(Gguf::from_bytes(whole[..len].to_vec()).is_err(), "cut to {len} of {} bytes", whole.len());
    }
}

/// Reads everything that an open file offers.
fn walk(gguf: &Gguf) -> usize {
    fn value(v: Value<'_>) -> usize {
        match v {
            Value::Array(array) => array.iter().map(value).sum(),
            Value::Str(s) => s.len(),
            _ => 1,
        }
    }
    let keys: usize = gguf.metadata.keys().filter_map(|key| gguf.metadata.value(key)).map(value).sum();
    let data: usize = gguf
        .tensor_names()
        .map(|name| gguf.tensor(name).expect("a listed tensor").data.iter().map(|b| *b as usize).sum::<usize>())
        .sum();
    keys + data
}

#[test]
fn a_file_with_any_byte_changed_never_panics() {
    let whole = small().bytes();
    let mut opened = 0;
    for at in 0..whole.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut mutant = whole.clone();
            mutant[at] ^= change;
            if let Ok(gguf) = Gguf::from_bytes(mutant) {
                opened += usize::from(walk(&gguf) > 0);
            }
        }
    }
    assert!(opened > 0, "some changes are harmless");
}

#[test]
fn fields_set_to_extremes_never_panic() {
    let whole = small().bytes();
    for at in 0..whole.len() - 8 {
        for value in [0u64, 1, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 1 << 61, i64::MAX as u64, u64::MAX - 31, u64::MAX] {
            for width in [4, 8] {
                let mut mutant = whole.clone();
                mutant[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
                if let Ok(gguf) = Gguf::from_bytes(mutant) {
                    walk(&gguf);
                }
            }
        }
    }
}

#[test]
fn files_are_mapped_and_errors_name_them() {
    let dir = std::env::temp_dir().join(format!("adventures-gguf-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("small.gguf");
    std::fs::write(&path, small().bytes()).unwrap();
    assert_eq!(Gguf::open(&path).unwrap().tensor("a").unwrap().data, [1; 24]);
    std::fs::write(&path, &small().bytes()[..100]).unwrap();
    assert!(Gguf::open(&path).unwrap_err().to_string().contains("small.gguf"));
    std::fs::write(&path, b"").unwrap();
    assert!(Gguf::open(&path).unwrap_err().to_string().contains("the file is empty"));
    assert!(matches!(Gguf::open(dir.join("absent.gguf")), Err(Error::NotFound(_))));
    assert!(Gguf::open(&dir).is_err());
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn types_round_trip() {
    for number in 0..64 {
        if let Some(dtype) = GgmlType::from_number(number) {
            assert_eq!(dtype.number(), number);
            assert!(dtype.block_bytes() > 0 && dtype.block_size() > 0);
        }
    }
    assert_eq!(GgmlType::Q6_K.to_string(), "Q6_K");
}
