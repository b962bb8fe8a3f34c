use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

const CODECS: [Codec; 3] = [Codec::Postcard, Codec::MessagePack, Codec::Json];

fn encoded<M: Serialize>(codec: Codec, message: &M) -> Bytes {
    let bytes = append(codec, message, BytesMut::new(), 1 << 26);
    bytes.unwrap().freeze()
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Ask {
    Nothing,
    Number(u64),
    Pair(i32, Option<String>),
    Named {
        bytes: Vec<u8>,
        map: BTreeMap<String, bool>,
    },
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        Just(Ask::Nothing),
        any::<u64>().prop_map(Ask::Number),
        (any::<i32>(), any::<Option<String>>()).prop_map(|(a, b)| Ask::Pair(a, b)),
        (any::<Vec<u8>>(), any::<BTreeMap<String, bool>>())
            .prop_map(|(bytes, map)| Ask::Named { bytes, map }),
    ]
}

proptest! {
    #[test]
    fn every_codec_gives_back_what_it_was_given(ask in ask()) {
        for codec in CODECS {
            prop_assert_eq!(&decode::<Ask>(codec, &encoded(codec, &ask)), &Ok(ask.clone()));
            prop_assert_eq!(cross(codec, &ask, 1 << 26).unwrap(), ask.clone());
        }
    }

    #[test]
    fn no_codec_panics_on_bytes_that_are_no_message(bytes in any::<Vec<u8>>()) {
        let bytes = Bytes::from(bytes);
        for codec in CODECS {
            let _ = decode::<Vec<Ask>>(codec, &bytes);
            let _ = decode::<Tree>(codec, &bytes);
        }
    }

    #[test]
    fn every_codec_keeps_to_the_limit_and_reports_what_is_left_over(ask in ask()) {
        for codec in CODECS {
            let whole = encoded(codec, &ask);
            let short = append(codec, &ask, BytesMut::new(), whole.len() - 1);
            prop_assert_eq!(short, Err(EncodeError::TooLarge));
            prop_assert!(append(codec, &ask, BytesMut::from(&b"head"[..]), whole.len()).is_ok());
            let longer = Bytes::from([&whole[..], &whole[..]].concat());
            prop_assert!(decode::<Ask>(codec, &longer).is_err());
        }
    }
}

/// Types that contain themselves, by a variant, by a list, by an option, and by a map.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Tree {
    Leaf,
    Node(Box<Tree>),
    Many(Vec<Tree>),
    Named { next: Option<Box<Tree>> },
    Map(BTreeMap<u8, Tree>),
}

#[test]
fn a_message_that_is_nested_without_end_is_an_error_and_not_the_end_of_the_process() {
    const DEEP: usize = 1 << 20;
    let bombs: [(Codec, &[u8], &[u8]); 10] = [
        (Codec::Postcard, &[1], &[0]),
        (Codec::Postcard, &[2, 1], &[0]),
        (Codec::Postcard, &[3, 1], &[0]),
        (Codec::Postcard, &[4, 1, 0], &[0]),
        (Codec::MessagePack, b"\x81\xa4Node", b"\xa4Leaf"),
        (Codec::MessagePack, b"\x81\xa4Many\x91", b"\xa4Leaf"),
        (
            Codec::MessagePack,
            b"\x81\xa5Named\x81\xa4next",
            b"\xa4Leaf",
        ),
        (Codec::MessagePack, b"\x81\xa3Map\x81\x00", b"\xa4Leaf"),
        (Codec::Json, br#"{"Node":"#, br#""Leaf""#),
        (Codec::Json, br#"{"Many":["#, br#""Leaf""#),
    ];
    // As much stack as tokio's threads have.
    let small = std::thread::Builder::new().stack_size(2 << 20);
    let all = small.spawn(move || {
        for (codec, level, end) in bombs {
            let mut bomb = level.repeat(DEEP);
            bomb.extend_from_slice(end);
            let error = decode::<Tree>(codec, &Bytes::from(bomb)).unwrap_err();
            assert!(
                error.0.contains("deep") || error.0.contains("recursion"),
                "{codec}: {error}"
            );
        }
        // Values without a type, whose nesting is all a message's own.
        for (codec, level) in [(Codec::MessagePack, &[0x91_u8][..]), (Codec::Json, b"[")] {
            let bomb = Bytes::from(level.repeat(DEEP));
            assert!(decode::<serde_json::Value>(codec, &bomb).is_err());
        }
    });
    all.unwrap().join().unwrap();
}

#[test]
fn what_nests_as_people_nest_crosses_in_every_codec() {
    let mut tree = Tree::Leaf;
    for level in 0..30 {
        tree = match level % 4 {
            0 => Tree::Node(Box::new(tree)),
            1 => Tree::Many(vec![tree]),
            2 => Tree::Named {
                next: Some(Box::new(tree)),
            },
            _ => Tree::Map([(7, tree)].into()),
        };
    }
    for codec in CODECS {
        assert_eq!(cross(codec, &tree, 1 << 20).unwrap(), tree, "{codec}");
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u64),
    Text(String),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    A { x: u8 },
    B,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Flat {
    name: String,
    #[serde(flatten)]
    rest: BTreeMap<String, u32>,
}

#[test]
fn what_describes_itself_crosses_in_the_codecs_that_can_and_is_an_error_that_says_what_to_do_in_the_other()
 {
    fn check<M>(message: &M)
    where
        M: Serialize + DeserializeOwned + fmt::Debug + PartialEq + 'static,
    {
        for codec in [Codec::MessagePack, Codec::Json] {
            assert_eq!(cross(codec, message, 1 << 20).unwrap(), *message, "{codec}");
        }
        let said = match cross(Codec::Postcard, message, 1 << 20).unwrap_err() {
            CrossError::Encode(EncodeError::Unfit(said)) => said,
            CrossError::Decode(DecodeError(said)) => said,
            other => panic!("{other:?}"),
        };
        assert!(
            said.contains("CODEC: Codec = Codec::MessagePack") || said.contains("too early"),
            "{said}"
        );
    }
    check(&serde_json::json!({"a": [1, null, "x"], "b": 1.5}));
    check(&Untagged::Number(7));
    check(&Untagged::Text("x".to_owned()));
    check(&Tagged::A { x: 1 });
    check(&Flat {
        name: "n".to_owned(),
        rest: [("a".to_owned(), 1)].into(),
    });
}

#[test]
fn a_field_may_be_added_or_left_out_where_fields_have_names() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Before {
        a: u32,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct After {
        #[serde(default)]
        b: Option<String>,
        a: u32,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        c: Vec<u8>,
    }
    for codec in [Codec::MessagePack, Codec::Json] {
        let (b, c) = (Some("new".to_owned()), vec![1]);
        let newer = encoded(codec, &After { a: 7, b, c });
        assert_eq!(decode::<Before>(codec, &newer), Ok(Before { a: 7 }));
        let older = encoded(codec, &Before { a: 7 });
        let (b, c) = (None, Vec::new());
        assert_eq!(decode::<After>(codec, &older), Ok(After { a: 7, b, c }));
    }
}

#[test]
fn a_message_that_leaves_fields_out_is_not_sent_by_position() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sparse {
        #[serde(default, skip_serializing_if = "is_zero")]
        a: u8,
        b: Vec<u8>,
    }
    fn is_zero(number: &u8) -> bool {
        *number == 0
    }
    let sparse = || Sparse { a: 0, b: vec![0] };
    // As postcard has it, these are the bytes of another message.
    let bytes = Bytes::from(postcard::to_allocvec(&sparse()).unwrap());
    assert_eq!(
        decode(Codec::Postcard, &bytes),
        Ok(Sparse { a: 1, b: vec![] })
    );
    for codec in [Codec::MessagePack, Codec::Json] {
        assert_eq!(cross(codec, &sparse(), 100).unwrap(), sparse(), "{codec}");
    }
    // However deep it lies.
    let nested = vec![Some((1, BTreeMap::from([("x", Box::new(sparse()))])))];
    match append(Codec::Postcard, &nested, BytesMut::new(), 100) {
        Err(EncodeError::Unfit(said)) => {
            assert!(
                said.contains("the field a") && said.contains("CODEC"),
                "{said}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(cross(Codec::Postcard, &sparse(), 100).is_err());
    assert_eq!(
        cross(Codec::Postcard, &Sparse { a: 1, b: vec![] }, 100)
            .unwrap()
            .a,
        1
    );
}
