//! Inverted lists: the documents that have a token of a centroid.

use crate::kernels::late::Centroids;

/// The lists of all centroids: documents rise, and are stored as differences, seven bits a byte, the lowest first.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// One more than there are centroids.
    pub(super) ends: Vec<u32>,
    pub(super) bytes: Vec<u8>,
}

/// Makes the lists of documents whose tokens have these centroids.
pub(super) fn make<'a>(documents: impl Iterator<Item = Centroids<'a>>, centroids: usize) -> Lists {
    let mut pairs: Vec<(u32, u32)> = Vec::new();
    let mut own = Vec::new();
    for (document, tokens) in documents.enumerate() {
        own.clear();
        own.extend((0..tokens.len()).map(|i| tokens.get(i) as u32));
        own.sort_unstable();
        own.dedup();
        pairs.extend(own.iter().map(|centroid| (*centroid, document as u32)));
    }
    // Documents rise already; this keeps their order.
    pairs.sort_by_key(|pair| pair.0);
    let mut lists = Lists { ends: vec![0], bytes: Vec::new() };
    let mut rest = pairs.as_slice();
    for centroid in 0..centroids as u32 {
        let (list, others) = rest.split_at(rest.partition_point(|pair| pair.0 <= centroid));
        let mut before = 0;
        for (_, document) in list {
            let mut difference = document - before;
            before = *document;
            while difference >= 0x80 {
                lists.bytes.push(difference as u8 | 0x80);
                difference >>= 7;
            }
            lists.bytes.push(difference as u8);
        }
        lists.ends.push(lists.bytes.len() as u32);
        rest = others;
    }
    lists
}

/// Reads one list.
pub(super) fn read(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let (mut document, mut difference, mut shift) = (0_usize, 0_usize, 0);
    bytes.iter().filter_map(move |byte| {
        difference |= usize::from(byte & 0x7f) << (shift.min(56));
        shift += 7;
        if byte & 0x80 != 0 {
            return None;
        }
        document = document.saturating_add(difference);
        (difference, shift) = (0, 0);
        Some(document)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_they_were_made() {
        let mut documents = vec![vec![]; 100_000];
        documents[0] = vec![2_u16, 0, 2];
        documents[130] = vec![2];
        documents[99_999] = vec![2, 3];
        let lists = make(documents.iter().map(|own| Centroids::Narrow(own)), 5);
        let of = |i: usize| read(&lists.bytes[lists.ends[i] as usize..lists.ends[i + 1] as usize]).collect::<Vec<_>>();
        assert_eq!((of(0), of(1), of(3), of(4)), (vec![0], vec![], vec![99_999], vec![]));
        assert_eq!(of(2), [0, 130, 99_999]);
    }
}
