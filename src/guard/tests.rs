use std::time::Duration;

use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};

use super::message::{LONGEST, Reply, Request};
use crate::sys::cgroup::Version;

fn requests() -> impl Strategy<Value = Request> {
    let version = prop_oneof![Just(Version::V1), Just(Version::V2)];
    prop_oneof![
        any::<u32>().prop_map(|pid| Request::Watch { pid }),
        (any::<u64>(), any::<u64>(), version).prop_map(|(id, limit, version)| Request::Hold {
            id,
            limit: Duration::from_millis(limit),
            version
        }),
        any::<u64>().prop_map(|id| Request::Release { id }),
        any::<u64>().prop_map(|id| Request::Thaw { id }),
    ]
}

proptest! {
    #[test]
    fn a_request_is_read_as_it_was_written(request in requests()) {
        let text = request.to_string();
        assert!(text.len() <= LONGEST);
        prop_assert_eq!(Request::parse(text.as_bytes()), Some(request));
    }

    #[test]
    fn whatever_comes_is_read_or_refused(text in any::<Vec<u8>>()) {
        if let Some(request) = Request::parse(&text) {
            prop_assert_eq!(Request::parse(request.to_string().as_bytes()), Some(request));
        }
        if let Some(reply) = Reply::parse(&text) {
            prop_assert_eq!(Reply::parse(reply.to_string().as_bytes()), Some(reply));
        }
    }

    #[test]
    fn a_reply_is_read_as_it_was_written(id in any::<u64>()) {
        for reply in [Reply::Done { id }, Reply::Late { id }, Reply::Full { id }, Reply::Failed { id }] {
            prop_assert_eq!(Reply::parse(reply.to_string().as_bytes()), Some(reply));
        }
    }
}

#[test]
fn what_is_not_a_request_is_refused() {
    for text in [
        "",
        "hold",
        "hold 1",
        "hold 1 2",
        "hold 1 2 v3",
        "hold 1 2 v1 more",
        "release",
        "release x",
        "release 1 2",
        "watch -1",
        "watch 4294967296",
        "thaw  1",
    ] {
        assert_eq!(Request::parse(text.as_bytes()), None, "{text}");
    }
}
