use super::codec::{Codec, Coded};
use super::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::fs;

static NO: AtomicBool = AtomicBool::new(false);
pub(super) const DIM: usize = 24;

/// A directory of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("adventures-index-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Unit vectors around a few hundred directions, as tokens lie.
pub(super) fn vectors(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let normal =
        |rng: &mut ChaCha8Rng| -> f32 { (0..4).map(|_| (rng.next_u32() >> 8) as f32 / (1 << 24) as f32 - 0.5).sum() };
    let topics: Vec<f32> = (0..300 * DIM).map(|_| normal(&mut rng)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut all = Vec::with_capacity(count * DIM);
    for _ in 0..count {
        let topic = rng.next_u32() as usize % 300;
        let row: Vec<f32> = topics[topic * DIM..][..DIM].iter().map(|x| x + 0.5 * normal(&mut rng)).collect();
        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        all.extend(row.iter().map(|x| x / length));
    }
    all
}

struct Data {
    ids: Vec<String>,
    vectors: Vec<f32>,
    ends: Vec<usize>,
}

/// Documents of 0 to 79 tokens.
fn data(count: usize, first: usize) -> Data {
    let mut ends = Vec::new();
    let mut tokens = 0;
    for i in first..first + count {
        tokens += i * 37 % 80;
        ends.push(tokens);
    }
    let ids = (first..first + count).map(|i| format!("d{i}")).collect();
    Data { ids, vectors: vectors(tokens, first as u64 + 1), ends }
}

fn put(writer: &mut Writer, data: &Data) -> Result<()> {
    let ids: Vec<&str> = data.ids.iter().map(String::as_str).collect();
    let documents = Documents { ids: &ids, texts: None, metadata: None, vectors: &data.vectors, ends: &data.ends };
    writer.push(&documents, DIM, &NO)
}

fn commit(writer: Writer) -> usize {
    writer.commit(&mut |_, _, _| Ok(()), &NO).expect("it commits")
}

fn made(path: &Path, nbits: usize, data: &Data) -> Index {
    let (index, mut writer) = Index::create(path, &IndexOptions { nbits, ..Default::default() }).expect("it begins");
    put(&mut writer, data).expect("they fit");
    commit(writer);
    index
}

fn search(index: &Index, query: &[f32], options: &SearchOptions) -> Vec<(String, f32)> {
    let found = index.search(query, DIM, &[query.len() / DIM], options, None, &NO).expect("it searches");
    found.queries[0].iter().map(|hit| (found.id(hit).to_owned(), hit.score)).collect()
}

fn exact(data: &Data, query: &[f32]) -> Vec<(usize, f32)> {
    let starts = std::iter::once(&0).chain(&data.ends);
    let mut scores: Vec<(usize, f32)> = starts
        .zip(&data.ends)
        .map(|(from, to)| {
            let tokens = &data.vectors[from * DIM..to * DIM];
            let near = |q: &[f32]| {
                let products = tokens.chunks(DIM).map(|x| x.iter().zip(q).map(|(x, q)| x * q).sum::<f32>());
                products.fold(f32::NEG_INFINITY, f32::max)
            };
            if from == to { 0.0 } else { query.chunks(DIM).map(near).sum() }
        })
        .enumerate()
        .collect();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    scores
}

fn recall(index: &Index, data: &Data, options: &SearchOptions) -> f64 {
    let mut found = 0;
    for seed in 0..20 {
        let query = vectors(32, 1000 + seed);
        let best: Vec<String> = exact(data, &query)[..10].iter().map(|(i, _)| data.ids[*i].clone()).collect();
        found += search(index, &query, options).iter().filter(|(id, _)| best.contains(id)).count();
    }
    found as f64 / 200.0
}

#[test]
fn a_sample_has_one_token_of_each_stretch() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for lengths in [&[1][..], &[1000], &[3, 0, 7, 1, 0, 0, 1000, 5, 5], &[1; 200], &[0, 17, 0]] {
        let total: usize = lengths.iter().sum();
        for wanted in (1..=total.min(300)).chain([total]) {
            let found = writer::sampled(lengths, wanted, &mut rng);
            let starts = |part: usize| lengths[..part].iter().sum::<usize>();
            assert_eq!(found.len(), wanted);
            for (i, (part, token)) in found.into_iter().enumerate() {
                assert!(token < lengths[part], "token {token} of part {part} of {lengths:?}");
                let stretch = i * total / wanted..(i + 1) * total / wanted;
                assert!(stretch.contains(&(starts(part) + token)), "{stretch:?} of {lengths:?}: {part}, {token}");
            }
        }
    }
}

#[test]
fn vectors_kept_as_they_are_have_the_scores_of_three_loops() {
    let (folder, data) = (Folder::new("exact"), data(50, 0));
    let index = made(&folder.0, 32, &data);
    for rows in [1, 5, 32, 40] {
        let query = vectors(rows, 5);
        let all = SearchOptions { k: 100, ..Default::default() };
        let found = search(&index, &query, &all);
        assert_eq!(found.len(), 50, "k is larger than the index");
        for ((id, score), (i, want)) in found.iter().zip(exact(&data, &query)) {
            assert!((score - want).abs() < 1e-4, "{id} {score} {} {want}", data.ids[i]);
        }
    }
}

#[test]
fn scores_of_vectors_as_they_are_depend_on_nothing_beside_them() {
    let (folder, first, second) = (Folder::new("beside"), data(300, 0), data(200, 300));
    let index = made(&folder.0, 32, &first);
    let mut writer = index.writer(false).expect("nobody else writes");
    put(&mut writer, &second).expect("they fit");
    (0..500).step_by(7).for_each(|i| assert_eq!(writer.delete(&format!("d{i}")), i < 300));
    commit(writer);
    let left: Vec<String> = (0..500).filter(|i| *i >= 300 || i % 7 > 0).map(|i| format!("d{i}")).collect();
    assert_eq!((index.ids(), index.info().segments), (left.clone(), 2));
    let some: Vec<&str> = left.iter().rev().step_by(3).map(String::as_str).collect();
    // More than go over the documents together, of different lengths.
    let queries: Vec<Vec<f32>> = (0..37).map(|i| vectors(1 + i % 34, 50 + i as u64)).collect();
    let ends: Vec<usize> = queries
        .iter()
        .scan(0, |end, query| {
            *end += query.len() / DIM;
            Some(*end)
        })
        .collect();
    let all = SearchOptions { k: usize::MAX, ..Default::default() };
    let few = SearchOptions { k: 3, ..Default::default() };
    let together = |options: &SearchOptions, ids: Option<&[&str]>| -> Vec<Vec<(String, f32)>> {
        let found = index.search(&queries.concat(), DIM, &ends, options, ids, &NO).expect("it searches");
        let named = |hits: &Vec<Found>| hits.iter().map(|hit| (found.id(hit).to_owned(), hit.score)).collect();
        found.queries.iter().map(named).collect()
    };
    let (whole, best) = (together(&all, None), together(&few, None));
    let of_some = together(&all, Some(&some));
    for (i, query) in queries.iter().enumerate() {
        assert_eq!(whole[i].len(), left.len());
        assert_eq!(search(&index, query, &all), whole[i], "alone");
        assert_eq!(best[i], whole[i][..3], "the best few");
        let mut theirs = whole[i].clone();
        theirs.retain(|(id, _)| some.contains(&id.as_str()));
        assert_eq!(of_some[i], theirs, "of some documents");
    }
    let stopped = index.search(&queries.concat(), DIM, &ends, &all, None, &AtomicBool::new(true));
    assert!(matches!(stopped, Err(Error::Cancelled)));
}

#[test]
fn compressed_vectors_find_nearly_what_the_exact_ones_do() {
    let data = data(2500, 0);
    for (nbits, least) in [(4, 0.85), (2, 0.5), (1, 0.25)] {
        let folder = Folder::new(&format!("recall{nbits}"));
        let index = made(&folder.0, nbits, &data);
        let info = index.info();
        assert!(info.centroids > 1000 && info.tokens > 1 << 16, "{info:?}");
        let all = SearchOptions { exhaustive: true, ..Default::default() };
        let some = SearchOptions::default();
        let (all, some) = (recall(&index, &data, &all), recall(&index, &data, &some));
        assert!(all >= least && some >= all - 0.05, "{nbits} bits: {all} of all, {some} of candidates");
        let again = Index::open(&folder.0, Some(1)).expect("it opens");
        let query = vectors(32, 3);
        assert_eq!(
            search(&again, &query, &SearchOptions::default()),
            search(&index, &query, &SearchOptions::default()),
            "one thread finds the same"
        );
    }
}

#[test]
fn of_many_centroids_groups_are_compared_and_as_much_is_found() {
    let (folder, data) = (Folder::new("groups"), data(6700, 0));
    let index = made(&folder.0, 4, &data);
    let info = index.info();
    assert!(info.centroids == 8192 && info.documents == 6700, "{info:?}");
    let all = SearchOptions { exhaustive: true, ..Default::default() };
    let (all, some) = (recall(&index, &data, &all), recall(&index, &data, &SearchOptions::default()));
    assert!(all >= 0.85 && some >= all - 0.05, "{all} of all, {some} of candidates");
}

#[test]
fn the_same_seed_makes_the_same_codec_of_many_centroids() {
    let sample = vectors(40_000, 1);
    let made = |threads| {
        let pool = device::pool(threads, "test").expect("a pool");
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        pool.install(|| Codec::train(&sample, DIM, 4, 300_000, &mut rng, &NO)).expect("it trains")
    };
    let (one, three) = (made(1), made(3));
    assert_eq!(one.count(), 8192);
    assert_eq!(one.to_bytes(), three.to_bytes());
    let codes = |codec: &Codec| {
        let mut codes = Vec::new();
        codec.encode(&sample[..9000 * DIM], &NO, |c| codes.push((c.centroid, c.scale, c.row.to_vec()))).expect("codes");
        codes
    };
    let read = Codec::from_bytes(&one.to_bytes()).expect("it is read");
    assert_eq!(codes(&one), codes(&read), "one that is read adds what the one that was made does");
}

#[test]
fn the_same_seed_makes_the_same_files() {
    let data = data(1000, 0);
    let files = |name: &str, seed| {
        let folder = Folder::new(name);
        let options = IndexOptions { nbits: 2, seed, ..Default::default() };
        let (_, mut writer) = Index::create(&folder.0, &options).expect("it begins");
        put(&mut writer, &data).expect("they fit");
        commit(writer);
        Manifest::read(&folder.0).expect("a manifest")
    };
    assert_eq!(files("seed-a", 1), files("seed-b", 1));
    assert_ne!(files("seed-c", 2).codec, files("seed-d", 1).codec);
}

#[test]
fn a_codec_restores_what_it_was_trained_on() {
    let sample = vectors(20_000, 1);
    for (nbits, most) in [(1, 0.09), (2, 0.03), (4, 0.004)] {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let codec = Codec::train(&sample, DIM, nbits, 20_000, &mut rng, &NO).expect("it trains");
        let codec = Codec::from_bytes(&codec.to_bytes()).expect("it is read");
        let mut restored = Vec::new();
        codec.encode(&sample, &NO, |coded: &Coded<'_>| codec.decode(coded, &mut restored)).expect("it compresses");
        let error = sample.iter().zip(&restored).map(|(x, y)| (x - y) * (x - y)).sum::<f32>() / 20_000.0;
        assert!(error < most, "{nbits} bits: a squared error of {error}");
    }
}

#[test]
fn a_small_index_is_compressed_when_it_grows() {
    let folder = Folder::new("grow");
    let (index, writer) = Index::create(&folder.0, &IndexOptions::default()).expect("it begins");
    assert_eq!(commit(writer), 0);
    assert!(search(&index, &vectors(3, 1), &SearchOptions::default()).is_empty());
    let mut all = Data { ids: vec![], vectors: vec![], ends: vec![] };
    for round in 0..25 {
        let part = data(50, round * 50);
        let mut writer = index.writer(false).expect("nobody writes");
        put(&mut writer, &part).expect("they fit");
        assert_eq!(commit(writer), (round + 1) * 50);
        let before = all.vectors.len() / DIM;
        all.ends.extend(part.ends.iter().map(|end| end + before));
        all.ids.extend(part.ids);
        all.vectors.extend(part.vectors);
        assert_eq!(index.info().centroids > 0, all.vectors.len() / DIM >= writer::EXACT);
    }
    assert!(index.info().segments <= 17, "{:?}", index.info());
    assert_eq!(index.ids(), all.ids);
    let some = SearchOptions::default();
    assert!(recall(&index, &all, &some) > 0.9);
    let mut writer = index.writer(false).expect("nobody writes");
    for i in (0..1250).step_by(2) {
        assert!(writer.delete(&format!("d{i}")));
    }
    assert!(!writer.delete("x"));
    assert_eq!(commit(writer), 625);
    let query = vectors(32, 9);
    let before = search(&index, &query, &some);
    assert!(before.iter().all(|(id, _)| id[1..].parse::<usize>().is_ok_and(|i| i % 2 == 1)));
    let size = index.info().bytes;
    index.writer(false).expect("nobody writes").compact(&NO).expect("it compacts");
    assert_eq!(search(&index, &query, &some), before);
    let info = index.info();
    assert_eq!((info.deleted, info.documents, info.segments), (0, 625, 1));
    assert!(info.bytes < size * 2 / 3);
    let names: Vec<_> = fs::read_dir(&folder.0).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names.len(), 4, "a manifest, a lock, a codec and a segment: {names:?}");
    assert_eq!(search(&Index::open(&folder.0, None).expect("it opens"), &query, &some), before);
}

#[test]
fn what_a_codec_is_trained_on_may_lie_in_any_files() {
    // Of one bit there are fewer centroids, so that a token is taken of each few, which lie in two files now and then.
    for seed in 0..6 {
        let folder = Folder::new(&format!("files{seed}"));
        let options = IndexOptions { nbits: 1, seed, ..Default::default() };
        let (index, writer) = Index::create(&folder.0, &options).expect("it begins");
        commit(writer);
        for round in 0..12 {
            let mut writer = index.writer(false).expect("nobody writes");
            put(&mut writer, &data(73, round * 73)).expect("they fit");
            assert_eq!(commit(writer), (round + 1) * 73);
        }
        let info = index.info();
        assert!(info.centroids == 1024 && info.tokens > writer::EXACT, "{info:?}");
    }
}

#[test]
fn an_upsert_replaces_and_an_add_refuses() {
    let (folder, first) = (Folder::new("upsert"), data(20, 0));
    let index = made(&folder.0, 4, &first);
    let mut writer = index.writer(false).expect("nobody writes");
    let error = put(&mut writer, &first).expect_err("they are there").to_string();
    assert!(error.contains("\"d0\" is in the index already"), "{error}");
    assert!(matches!(index.writer(false), Err(Error::Busy(_))), "one writer at a time");
    drop(writer);
    let mut other = data(20, 0);
    other.vectors = vectors(other.vectors.len() / DIM, 99);
    let mut writer = index.writer(true).expect("nobody writes");
    put(&mut writer, &other).expect("they replace");
    assert_eq!(commit(writer), 20);
    let query = vectors(4, 4);
    let best = exact(&other, &query)[0];
    let found = search(&index, &query, &SearchOptions { k: 1, ..Default::default() });
    assert!((found[0].1 - best.1).abs() < 1e-4);
}

#[test]
fn ids_restrict_a_search() {
    let data = data(2500, 0);
    let folder = Folder::new("filter");
    let index = made(&folder.0, 4, &data);
    let query = vectors(32, 77);
    let all = search(&index, &query, &SearchOptions { k: 2500, exhaustive: true, ..Default::default() });
    for step in [1, 2, 500] {
        let ids: Vec<&str> = data.ids.iter().step_by(step).map(String::as_str).collect();
        let found = index
            .search(&query, DIM, &[32], &SearchOptions { k: 5, ..Default::default() }, Some(&ids), &NO)
            .expect("it searches");
        let got: Vec<&str> = found.queries[0].iter().map(|hit| found.id(hit)).collect();
        let want = all.iter().map(|(id, _)| id.as_str()).filter(|id| ids.contains(id));
        assert_eq!(got[0], want.clone().next().expect("there are some"));
        let near = want.take(5).filter(|id| got.contains(id)).count();
        assert!(near >= 4, "{step}: {near} of 5");
    }
    let unknown = index.search(&query, DIM, &[32], &SearchOptions::default(), Some(&["x"]), &NO);
    assert!(unknown.is_err_and(|e| e.to_string().contains("\"x\" is not in the index")));
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = Folder::new("refuse");
    let (index, mut writer) = Index::create(&folder.0, &IndexOptions::default()).expect("it begins");
    let mut push = |ids: &[&str], vectors: &[f32], ends: &[usize], dim| {
        let documents = Documents { ids, texts: None, metadata: None, vectors, ends };
        writer.push(&documents, dim, &NO).expect_err("it is refused").to_string()
    };
    assert_eq!(push(&["a"], &[1.0, f32::NAN], &[1], 2), "the vectors of document \"a\" hold NaN");
    assert_eq!(push(&[""], &[1.0, 0.0], &[1], 2), "the id of document 0 is empty");
    assert_eq!(push(&["a", "a"], &[1.0, 0.0], &[1, 1], 2), "id \"a\" is given twice");
    assert!(push(&["b"], &[1.0, 0.0, 0.5], &[1], 2).starts_with("3 numbers are not the tokens of 1"));
    assert!(push(&["b"], &[], &[0], 0).starts_with("vectors of 0 dimensions"));
    drop(writer);
    assert_eq!(fs::read_dir(&folder.0).expect("a folder").count(), 1, "the lock alone is left");
    assert!(matches!(Index::open(&folder.0, None), Err(Error::NotFound(_))));
    drop(index);
    let index = made(&folder.0, 4, &data(9, 0));
    let wrong = index.search(&[0.0; 7], 7, &[1], &SearchOptions::default(), None, &NO);
    assert!(wrong.is_err_and(|e| e.to_string() == "vectors of 7 dimensions, the index has 24"));
    let none = index.search(&[], DIM, &[0], &SearchOptions::default(), None, &NO);
    assert!(none.is_err_and(|e| e.to_string().starts_with("query 0 has 0 vectors")));
    assert!(Index::create(&folder.0, &IndexOptions::default()).is_err_and(|e| e.to_string().contains("not empty")));
}
