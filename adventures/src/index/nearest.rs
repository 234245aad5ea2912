//! The nearest centroid of each vector: of few centroids all are compared, of many those of the nearest groups.

use super::kmeans;
use crate::error::{Error, Result};
use crate::kernels::late::nearest;
use crate::kernels::panels::{Kernel, Linear, Rounded, Then};
use crate::kernels::threads::Threads;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// Vectors whose products are computed together.
const ROWS: usize = 96;
/// Centroids whose products with them stay in the second cache.
const COLUMNS: usize = 1024;
/// Of fewer centroids than this, groups are not faster.
const GROUPED: usize = 1 << 13;
/// Groups that a centroid is in: those at an edge are found from both sides.
const GROUPS: usize = 4;
/// Rounds of k-means that make the groups.
const ROUNDS: usize = 3;
/// Vectors whose groups are found before they are compared with centroids: as many as fill lists, as few as all threads have.
const BLOCK: (usize, usize) = (1 << 9, 1 << 13);

/// Groups that a vector is compared with the centroids of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probes {
    /// For rounds of k-means. 97 to 99 % of vectors of 8,192 to 16,384 centroids find the nearest.
    Few = 8,
    /// For what is stored: above 99 %, and the others one that is nearly as near.
    Many = 16,
}

/// Centroids, packed to be searched.
pub(super) struct Nearest {
    dim: usize,
    search: Search,
}

enum Search {
    All(Vec<Linear>),
    Groups(Groups),
}

struct Groups {
    heads: Linear,
    groups: Vec<Group>,
}

struct Group {
    packed: Linear,
    /// Rising.
    members: Vec<u32>,
}

/// What a thread keeps between blocks.
#[derive(Default)]
struct Scratch {
    products: Vec<f32>,
    rounded: Rounded,
    /// Groups that a row is near to.
    near: Vec<(f32, u32)>,
    /// The rows that are near to each group.
    lists: Vec<Vec<u32>>,
    /// Rows as products read them: all, and those of a list.
    rows: Vec<u32>,
    listed: Vec<u32>,
    best: Vec<f32>,
}

impl Nearest {
    /// Runs on the rayon pool it is called in.
    pub(super) fn new(centroids: &[f32], dim: usize, cancel: &AtomicBool) -> Result<Self> {
        let count = centroids.len() / dim;
        if count < GROUPED {
            return Self::all(centroids, dim);
        }
        Self::grouped(centroids, dim, 2 * count.isqrt(), cancel)
    }

    /// Compares all centroids.
    fn all(centroids: &[f32], dim: usize) -> Result<Self> {
        let parts = centroids.chunks(COLUMNS * dim).map(|part| pack(part, dim)).collect::<Result<_>>()?;
        Ok(Self { dim, search: Search::All(parts) })
    }

    /// Compares those of the nearest of `count` groups. The same centroids have the same groups on the same instructions.
    fn grouped(centroids: &[f32], dim: usize, count: usize, cancel: &AtomicBool) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let heads = kmeans::train(centroids, dim, count, ROUNDS, &mut rng, cancel)?;
        let mut products = vec![0.0; centroids.len() / dim * count];
        pack(&heads, dim)?.apply(centroids, &mut products, Then::Store, Threads::All, &mut Rounded::new());
        let (mut members, mut near) = (vec![Vec::new(); count], Vec::new());
        for (centroid, products) in products.chunks_exact(count).enumerate() {
            first(products, GROUPS, &mut near);
            for (_, head) in &near {
                members[*head as usize].push(centroid as u32);
            }
        }
        let (mut kept, mut groups) = (Vec::with_capacity(heads.len()), Vec::with_capacity(count));
        for (members, head) in members.into_iter().zip(heads.chunks_exact(dim)) {
            if members.is_empty() {
                continue;
            }
            let rows: Vec<f32> = members.iter().flat_map(|i| &centroids[*i as usize * dim..][..dim]).copied().collect();
            kept.extend_from_slice(head);
            groups.push(Group { packed: pack(&rows, dim)?, members });
        }
        Ok(Self { dim, search: Search::Groups(Groups { heads: pack(&kept, dim)?, groups }) })
    }

    /// Returns the nearest centroid of each of `(n, dim)` vectors, the first of equals; of many centroids, now and then one that
    /// is nearly as near. It is the same whatever vectors are beside one. Runs on the rayon pool it is called in.
    pub(super) fn of(&self, vectors: &[f32], probes: Probes, cancel: &AtomicBool) -> Result<Vec<u32>> {
        let mut found = vec![0; vectors.len() / self.dim];
        let block = match self.search {
            Search::All(_) => ROWS,
            Search::Groups(_) => found.len().div_ceil(rayon::current_num_threads()).clamp(BLOCK.0, BLOCK.1),
        };
        let blocks = vectors.par_chunks(block * self.dim).zip(found.par_chunks_mut(block));
        blocks.try_for_each_init(Scratch::default, |scratch, (rows, found)| {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            match &self.search {
                Search::All(parts) => of_all(parts, rows, found, scratch),
                Search::Groups(groups) => groups.of(rows, probes as usize, found, scratch),
            }
            Ok(())
        })?;
        Ok(found)
    }
}

impl Groups {
    fn of(&self, rows: &[f32], probes: usize, found: &mut [u32], scratch: &mut Scratch) {
        self.list(rows, probes, scratch);
        let Scratch { products, lists, rows, listed, best, .. } = scratch;
        let width = rows.len() / found.len();
        best.clear();
        best.resize(found.len(), f32::NEG_INFINITY);
        for (Group { packed, members }, list) in self.groups.iter().zip(lists) {
            for some in list.chunks(ROWS) {
                listed.clear();
                for row in some {
                    listed.extend_from_slice(&rows[*row as usize * width..][..width]);
                }
                products.resize(some.len() * members.len(), 0.0);
                packed.apply_rounded(listed, products, Then::Store, Threads::One);
                let (mut most, mut at) = ([f32::NEG_INFINITY; ROWS], [0; ROWS]);
                nearest(products, members.len(), 0, &mut most, &mut at);
                for ((row, product), at) in some.iter().zip(most).zip(at) {
                    let (best, found) = (&mut best[*row as usize], &mut found[*row as usize]);
                    let centroid = members[at as usize];
                    if product > *best || (product >= *best && centroid < *found) {
                        (*best, *found) = (product, centroid);
                    }
                }
            }
        }
    }

    /// Lists the rows that are near to each group.
    fn list(&self, rows: &[f32], probes: usize, scratch: &mut Scratch) {
        let Scratch { products, rounded, near, lists, rows: all, .. } = scratch;
        let count = self.groups.len();
        lists.resize(count, Vec::new());
        lists.iter_mut().for_each(Vec::clear);
        all.clear();
        for (i, some) in rows.chunks(ROWS * self.heads.inputs()).enumerate() {
            let from = all.len();
            self.heads.round_rows(some, rounded, all);
            products.resize(some.len() / self.heads.inputs() * count, 0.0);
            self.heads.apply_rounded(&all[from..], products, Then::Store, Threads::One);
            for (j, products) in products.chunks_exact(count).enumerate() {
                first(products, probes, near);
                for (_, group) in near.iter() {
                    lists[*group as usize].push((i * ROWS + j) as u32);
                }
            }
        }
    }
}

fn pack(rows: &[f32], dim: usize) -> Result<Linear> {
    Linear::pack(rows, &[], dim, Kernel::finer())
}

fn of_all(parts: &[Linear], rows: &[f32], found: &mut [u32], scratch: &mut Scratch) {
    let mut best = [f32::NEG_INFINITY; ROWS];
    for (i, part) in parts.iter().enumerate() {
        scratch.products.resize(found.len() * part.outputs(), 0.0);
        part.apply(rows, &mut scratch.products, Then::Store, Threads::One, &mut scratch.rounded);
        nearest(&scratch.products, part.outputs(), i * COLUMNS, &mut best, found);
    }
}

/// Makes `near` the `count` largest of `products` with where they are, the largest first; the first of equals.
fn first(products: &[f32], count: usize, near: &mut Vec<(f32, u32)>) {
    near.clear();
    near.resize(count.min(products.len()), (f32::NEG_INFINITY, 0));
    for (i, product) in products.iter().enumerate() {
        if *product > near[near.len() - 1].0 {
            let at = near.partition_point(|(other, _)| other >= product);
            near[at..].rotate_right(1);
            near[at] = (*product, i as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{DIM, vectors};
    use super::*;

    static NO: AtomicBool = AtomicBool::new(false);

    /// For each vector, what is found of groups and the nearest of all, and how near they are.
    fn both(vectors: &[f32], centroids: &[f32], dim: usize, groups: usize, probes: Probes) -> Vec<[(u32, f32); 2]> {
        let groups = Nearest::grouped(centroids, dim, groups, &NO).expect("they are grouped");
        let all = Nearest::all(centroids, dim).expect("they are packed");
        let [some, all] = [groups, all].map(|searched| searched.of(vectors, probes, &NO).expect("they are found"));
        let near = |row: &[f32], centroid: u32| -> (u32, f32) {
            let centroid_row = &centroids[centroid as usize * dim..][..dim];
            (centroid, row.iter().zip(centroid_row).map(|(x, y)| x * y).sum())
        };
        let found = some.into_iter().zip(all).zip(vectors.chunks_exact(dim));
        found.map(|((some, all), row)| [near(row, some), near(row, all)]).collect()
    }

    #[test]
    fn groups_find_the_centroids_that_comparing_all_does() {
        let (centroids, vectors) = (vectors(4000, 1), vectors(9000, 2));
        for (probes, least) in [(Probes::Few, 0.95), (Probes::Many, 0.985)] {
            let found = both(&vectors, &centroids, DIM, 128, probes);
            let same = found.iter().filter(|[some, all]| some.0 == all.0).count() as f64 / found.len() as f64;
            let lost = found.iter().map(|[some, all]| all.1 - some.1).sum::<f32>() / found.len() as f32;
            assert!(same >= least && lost < 0.002, "{probes:?}: {same} are the same, {lost} is lost");
        }
    }

    #[test]
    fn as_many_probes_as_groups_find_the_same_in_any_shape() {
        let shapes: [(usize, usize, usize); 7] =
            [(1, 1, 1), (2, 3, 1), (95, 5, 3), (96, 31, 24), (97, 33, 24), (600, 100, 130), (1500, 1025, 7)];
        for (rows, count, dim) in shapes {
            let numbers = vectors((rows + count) * dim.div_ceil(DIM) + dim, 3);
            let (own, rest) = numbers.split_at(rows * dim);
            let mut centroids = rest[..count * dim].to_vec();
            // Equals, of which the first is found, and a row that nothing is near to.
            centroids.copy_within(..dim, (count - 1) * dim);
            let mut own = own.to_vec();
            own[..dim].fill(0.0);
            for groups in [1, 2, 16] {
                let found = both(&own, &centroids, dim, groups.min(count), Probes::Many);
                assert!(
                    found.iter().all(|[some, all]| some.0 == all.0),
                    "{rows} rows, {count} centroids of {dim}, {groups} groups"
                );
            }
        }
        let nearest = Nearest::grouped(&vectors(9, 1), DIM, 2, &NO).expect("they are grouped");
        assert!(nearest.of(&[], Probes::Few, &NO).expect("none").is_empty());
    }

    #[test]
    fn what_is_found_depends_on_the_vector_alone() {
        let (centroids, vectors) = (vectors(3000, 1), vectors(5000, 2));
        let of = |threads, part: usize| -> Vec<u32> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| {
                let nearest = Nearest::grouped(&centroids, DIM, 100, &NO).expect("they are grouped");
                let parts = vectors.chunks(part * DIM);
                parts.flat_map(|part| nearest.of(part, Probes::Few, &NO).expect("they are found")).collect()
            })
        };
        let whole = of(1, 5000);
        for (threads, part) in [(3, 5000), (2, 700), (1, 1)] {
            assert_eq!(of(threads, part), whole, "{threads} threads, {part} at a time");
        }
    }

    #[test]
    fn the_largest_come_first_and_of_equals_the_first() {
        let mut near = Vec::new();
        first(&[0.5, 2.0, -1.0, 2.0, 0.75], 3, &mut near);
        assert_eq!(near, [(2.0, 1), (2.0, 3), (0.75, 4)]);
        first(&[1.0], 3, &mut near);
        assert_eq!(near, [(1.0, 0)]);
    }
}
