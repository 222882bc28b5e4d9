use super::*;
use crate::view::layer::tests::layer;

fn index() -> Index {
    let tree = layer(&["d a", "f a/b", "l a/c /etc", "h a/d a/b", "f .wh.x", "p q"]).unwrap();
    let points = vec![Point::default(), Point { tar: 1 << 20, blob: 77, crc: 0xdead_beef }];
    Index { diff_id: DiffId::of(b"tar"), tar_length: 5 << 20, points, tree }
}

#[test]
fn an_index_comes_back() {
    let index = index();
    assert_eq!(decode(&encode(&index)), Some(index));
}

#[test]
fn any_change_is_noticed() {
    let bytes = encode(&index());
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert_eq!(decode(&changed), None, "byte {at}");
    }
    for length in [0, 15, 40, bytes.len() - 1] {
        assert_eq!(decode(&bytes[..length]), None);
    }
}

#[test]
fn what_has_its_checksum_and_makes_no_sense_is_no_index() {
    let mut index = index();
    index.tree.names[0].inode = 1000;
    assert_eq!(decode(&encode(&index)), None);
    index.tree.names[0].inode = 1;
    index.tree.inodes[1].target.length = u32::MAX;
    assert_eq!(decode(&encode(&index)), None);
}
