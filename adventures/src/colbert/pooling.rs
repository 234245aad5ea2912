//! Fewer vectors of a document: similar tokens become their mean (Clavié, Chaffin and Adams 2024).
//!
//! Follows `pool_embeddings_hierarchical` of <https://github.com/lightonai/pylate>: Ward's clustering over one minus the cosine,
//! the first token kept as it is.

use crate::kernels::math::accumulate;

/// Returns the vectors of a document's `(tokens, dim)`, of which there are about `factor` times fewer: the first, then the
/// means of clusters in the order of their first tokens. Means are not of unit length.
pub(super) fn pool(rows: &[f32], dim: usize, factor: usize) -> Vec<f32> {
    let (first, rest) = rows.split_at(dim.min(rows.len()));
    let count = rest.len() / dim;
    let clusters = (count / factor).max(1);
    if clusters >= count {
        return rows.to_vec();
    }
    let cluster_of = ward(rest, dim, count, clusters);
    // Clusters are counted as their first tokens come.
    let (mut places, mut members) = (vec![usize::MAX; count], Vec::new());
    let mut pooled = first.to_vec();
    for (row, cluster) in rest.chunks_exact(dim).zip(cluster_of) {
        if places[cluster] == usize::MAX {
            places[cluster] = members.len();
            members.push(0_u32);
            pooled.resize(pooled.len() + dim, 0.0);
        }
        let place = places[cluster];
        members[place] += 1;
        accumulate(&mut pooled[(place + 1) * dim..(place + 2) * dim], row);
    }
    for (mean, members) in pooled[dim..].chunks_exact_mut(dim).zip(members) {
        for x in mean {
            *x /= members as f32;
        }
    }
    pooled
}

/// A merge of two clusters, each named by one of its tokens.
struct Merge {
    height: f64,
    a: usize,
    b: usize,
}

/// Returns for each of `count` rows the cluster that it is in, of `clusters`, named by one of its rows.
///
/// Nearest neighbours are followed until two are each other's (Murtagh 1983): the same merges as by always taking the nearest
/// pair, in the square of the time instead of its cube.
fn ward(rows: &[f32], dim: usize, count: usize, clusters: usize) -> Vec<usize> {
    let row = |i: usize| &rows[i * dim..(i + 1) * dim];
    let mut squares = vec![0.0_f64; count * count];
    for i in 0..count {
        for j in 0..i {
            let cosine: f32 = row(i).iter().zip(row(j)).map(|(a, b)| a * b).sum();
            let square = f64::from(1.0 - cosine).powi(2);
            (squares[i * count + j], squares[j * count + i]) = (square, square);
        }
    }
    let mut sizes = vec![1_usize; count];
    let mut merges: Vec<Merge> = Vec::with_capacity(count - 1);
    let mut chain: Vec<usize> = Vec::new();
    while merges.len() + 1 < count {
        if chain.is_empty() {
            chain.extend((0..count).find(|i| sizes[*i] > 0));
        }
        let last = *chain.last().expect("a cluster is left; this is a bug");
        // Of neighbours as near, the one before in the chain: it would go round for ever otherwise.
        let before = chain.len().checked_sub(2).map(|i| chain[i]);
        let mut nearest = before;
        for other in (0..count).filter(|i| *i != last && sizes[*i] > 0) {
            if nearest.is_none_or(|nearest| squares[last * count + other] < squares[last * count + nearest]) {
                nearest = Some(other);
            }
        }
        let nearest = nearest.expect("another cluster is left; this is a bug");
        if before != Some(nearest) {
            chain.push(nearest);
            continue;
        }
        chain.truncate(chain.len() - 2);
        let (a, b) = (nearest, last);
        let height = squares[a * count + b];
        let (na, nb) = (sizes[a] as f64, sizes[b] as f64);
        sizes[a] = 0;
        sizes[b] = (na + nb) as usize;
        for i in (0..count).filter(|i| *i != b && sizes[*i] > 0) {
            // Lance and Williams 1967.
            let n = sizes[i] as f64;
            let (ia, ib) = (squares[i * count + a], squares[i * count + b]);
            let square = ((na + n) * ia + (nb + n) * ib - n * height) / (na + nb + n);
            (squares[i * count + b], squares[b * count + i]) = (square, square);
        }
        merges.push(Merge { height, a, b });
    }
    merges.sort_by(|x, y| x.height.total_cmp(&y.height));
    let mut parents: Vec<usize> = (0..count).collect();
    for merge in &merges[..count - clusters] {
        let (a, b) = (root(&mut parents, merge.a), root(&mut parents, merge.b));
        parents[a] = b;
    }
    (0..count).map(|i| root(&mut parents, i)).collect()
}

fn root(parents: &mut [usize], mut i: usize) -> usize {
    while parents[i] != i {
        parents[i] = parents[parents[i]];
        i = parents[i];
    }
    i
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_their_mean_and_the_first_stays() {
        // Beside the first: two near (1, 0), two near (0, 1), in turns.
        let rows = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.96, 0.28, 0.28, 0.96];
        let want = [1.0, 0.0, 0.98, 0.14, 0.14, 0.98];
        let pooled = pool(&rows, 2, 2);
        assert_eq!(pooled.len(), want.len());
        assert!(pooled.iter().zip(want).all(|(a, b): (_, f32)| (a - b).abs() < 1e-6), "{pooled:?}");
        assert_eq!(pool(&rows, 2, 4).len(), 4);
    }

    #[test]
    fn what_cannot_be_fewer_stays() {
        let rows = [1.0, 0.0, 0.0, 1.0];
        assert_eq!(pool(&rows, 2, 3), rows);
        assert_eq!(pool(&rows[..2], 2, 3), rows[..2]);
        assert!(pool(&[], 2, 3).is_empty());
        assert_eq!(pool(&[1.0, 0.0, 0.0, 1.0, 0.6, 0.8], 2, 1), [1.0, 0.0, 0.0, 1.0, 0.6, 0.8]);
    }

    #[test]
    fn equal_tokens_end() {
        let rows = [0.6, 0.8].repeat(40);
        let pooled = pool(&rows, 2, 4);
        assert_eq!(pooled.len(), 2 * (1 + 9));
        assert!(pooled.chunks(2).all(|row| (row[0] - 0.6).abs() < 1e-6 && (row[1] - 0.8).abs() < 1e-6));
    }
}
