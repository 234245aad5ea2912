//! Times next-plaid on the vectors that tools/bench_colbert.py has written; prints a line of JSON.
use ndarray::{Array2, ArrayView2};
use next_plaid::{IndexConfig, MmapIndex, SearchParameters};
use std::time::Instant;

fn floats(path: &str) -> Vec<f32> {
    std::fs::read(path).expect("a file").chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn ends(path: &str) -> Vec<usize> {
    let bytes = std::fs::read(path).expect("a file");
    bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")) as usize).collect()
}

fn ragged(dir: &str, name: &str, dim: usize) -> Vec<Array2<f32>> {
    let (vectors, ends) = (floats(&format!("{dir}/{name}.f32")), ends(&format!("{dir}/{name}.ends")));
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let rows = starts.zip(&ends).map(|(from, to)| &vectors[from * dim..to * dim]);
    rows.map(|rows| ArrayView2::from_shape((rows.len() / dim, dim), rows).expect("a shape").to_owned()).collect()
}

fn bytes(dir: &std::path::Path) -> u64 {
    std::fs::read_dir(dir).expect("a folder").flatten().map(|entry| entry.metadata().map_or(0, |m| m.len())).sum()
}

/// Waits until the disk has all files of a folder that were just written, and their names.
fn sync(dir: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)?.flatten() {
        std::fs::File::open(entry.path())?.sync_all()?;
    }
    std::fs::File::open(dir)?.sync_all()
}

/// Makes one folder of files like another, on the disk.
fn copied(from: &std::path::Path, to: &std::path::Path) -> std::io::Result<()> {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)?.flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    sync(to)
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, dim, nbits, k] = args.as_slice() else { panic!("DIR DIM NBITS K") };
    let (dim, nbits, k) = (dim.parse().expect("dim"), nbits.parse().expect("nbits"), k.parse().expect("k"));
    let (documents, queries) = (ragged(dir, "documents", dim), ragged(dir, "queries", dim));
    let tokens: usize = documents.iter().map(Array2::nrows).sum();
    let path = format!("{dir}/next-plaid-{nbits}");
    let _ = std::fs::remove_dir_all(&path);
    let start = Instant::now();
    let config = IndexConfig { nbits, ..Default::default() };
    let index = MmapIndex::create_with_kmeans(&documents, &path, &config).expect("it builds");
    let build = start.elapsed().as_secs_f64();
    let size = bytes(std::path::Path::new(&path)) as f64 / tokens as f64;
    let parameters = SearchParameters { top_k: k, ..Default::default() };
    let mut rates = Vec::new();
    let mut found = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        found = index.search_batch(&queries, &parameters, true, None).expect("it searches");
        rates.push(queries.len() as f64 / start.elapsed().as_secs_f64());
    }
    let hits: Vec<String> = found.iter().map(|one| format!("{:?}", one.passage_ids)).collect();
    let mut single = Vec::new();
    for query in &queries {
        let start = Instant::now();
        index.search(query, &parameters, None).expect("it searches");
        single.push(start.elapsed().as_secs_f64());
    }
    let gone: Vec<i64> = (0..documents.len().min(1000) as i64).collect();
    let (mut delete, mut durable) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..3 {
        let copy = format!("{path}-copy");
        copied(std::path::Path::new(&path), std::path::Path::new(&copy)).expect("a copy");
        let mut index = MmapIndex::load(&copy).expect("it opens");
        let start = Instant::now();
        index.delete(&gone).expect("it deletes");
        delete = delete.min(start.elapsed().as_secs_f64());
        // It leaves what it has written to the system; this is what makes that durable.
        sync(std::path::Path::new(&copy)).expect("the disk takes it");
        durable = durable.min(start.elapsed().as_secs_f64());
    }
    let best = rates.iter().copied().fold(0.0, f64::max);
    let numbers = format!("\"build\": {build}, \"bytes\": {size}, \"rate\": {best}, \"single\": {single:?}");
    let hits = hits.join(", ");
    println!("{{{numbers}, \"delete\": {delete}, \"durable\": {durable}, \"hits\": [{hits}]}}");
}
