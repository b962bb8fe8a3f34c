use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use ::bytes::Bytes;
use proptest::prelude::*;
use serde::Serialize;

use super::hash::write_part;
use super::*;

#[test]
fn the_canonical_bytes_are_those_of_the_specification() {
    let mut bytes = Vec::new();
    ("ab", 7_u8).write(&mut bytes);
    let mut expected = vec![2, 0, 0, 0, b'a', b'b', 16, 0, 0, 0, 7];
    expected.extend_from_slice(&[0; 15]);
    assert_eq!(bytes, expected);
    assert_eq!(Key::from(("ab", 7_u8)), Key::from_canonical(&expected));
    assert_eq!(Key::from(-1_i8), Key::from_canonical(&[0xff; 16]));
}

#[test]
fn the_hash_is_pinned() {
    assert_eq!(Key::from("").hash(), 0x2d06_8005_38d3_94c2);
    assert_eq!(Key::from("").slot().index(), 0x2d068);
}

#[test]
fn parts_do_not_run_into_each_other() {
    assert_ne!(Key::from(("ab", "c")), Key::from(("a", "bc")));
}

#[test]
fn any_serde_value_is_a_key() {
    let key = Key::of(&Some(("tenant", 7_u32))).unwrap();
    assert_eq!(key, Key::of(&Some(("tenant", 7_u32))).unwrap());
}

/// What a value is by `From`, and what it is by serde.
fn agree<T: Serialize + Clone>(value: T) -> Result<(), TestCaseError>
where
    Key: From<T>,
{
    prop_assert_eq!(Key::of(&value).unwrap(), Key::from(value));
    Ok(())
}

proptest! {
    #[test]
    fn a_text_is_one_key_in_every_type_that_holds_it(text in any::<String>()) {
        let key = Key::from_canonical(text.as_bytes());
        agree(text.as_str())?;
        agree(text.clone())?;
        agree(&text)?;
        prop_assert_eq!(Key::of(&text).unwrap(), key);
        prop_assert_eq!(Key::of(&*text).unwrap(), key);
        prop_assert_eq!(Key::from(&text.as_str()), key);
        let (shared, boxed) = (Arc::<str>::from(&*text), Box::<str>::from(&*text));
        agree(Cow::Borrowed(&*text))?;
        agree(&Cow::<str>::Owned(text.clone()))?;
        agree(&shared)?;
        agree(shared)?;
        agree(&boxed)?;
        agree(boxed)?;
        prop_assert_eq!(Key::from(text.as_bytes()), key);
    }

    #[test]
    fn bytes_are_one_key_in_every_type_that_holds_them(bytes in any::<Vec<u8>>()) {
        let key = Key::from_canonical(&bytes);
        agree(bytes.as_slice())?;
        agree(bytes.clone())?;
        agree(&bytes)?;
        agree(Bytes::from(bytes.clone()))?;
        agree(&Bytes::from(bytes.clone()))?;
        agree(Box::<[u8]>::from(&*bytes))?;
        agree(Arc::<[u8]>::from(&*bytes))?;
        agree(Cow::Borrowed(&*bytes))?;
        prop_assert_eq!(Key::of(&*bytes).unwrap(), key);
    }

    #[test]
    fn arrays_are_bytes_and_tuples_are_tuples(a in any::<[u8; 1]>(), b in any::<[u8; 2]>(), e in any::<[u8; 5]>()) {
        agree([0_u8; 0])?;
        agree(a)?;
        agree(b)?;
        agree(&b)?;
        agree(e)?;
        agree((b[0], b[1]))?;
        agree((e[0], e[1], e[2]))?;
        agree((e[0], e[1], e[2], e[3]))?;
        agree((e[0], e[1], e[2], e[3], e[4]))?;
        agree(("a", e, (b[0], b[1])))?;
        agree((b, (e[0], (b[0], b[1], e[2]))))?;
        agree((a.to_vec(), Vec::<u8>::new(), [0_u8; 0]))?;
        prop_assert_eq!(Key::of(&&(b[0], b[1])).unwrap(), Key::from((b[0], b[1])));
        prop_assert_ne!(Key::from((b[0], b[1])), Key::from(b));
    }

    #[test]
    fn a_character_is_the_text_of_it(c in any::<char>()) {
        agree(c)?;
        agree(&c)?;
        agree((c, 7))?;
        prop_assert_eq!(Key::from(c), Key::from(c.to_string()));
    }

    #[test]
    fn tuples_are_one_key_whatever_their_parts(
        text in any::<String>(),
        bytes in any::<Vec<u8>>(),
        number in any::<i64>(),
        small in any::<u8>(),
        c in any::<char>(),
    ) {
        agree((text.as_str(), number))?;
        agree((&text, &number, small))?;
        agree((text.clone(), bytes.clone(), number, &small))?;
        agree((small, text.clone(), Bytes::from(bytes.clone()), c, number))?;
        agree((small, (small, number), (text.as_str(), (small, small))))?;
        agree(([small, small], Cow::Borrowed(&*text)))?;
    }
}

macro_rules! widths {
    ($($type:ident)*) => {$(
        proptest! {
            #[test]
            fn $type(value in any::<$type>()) {
                agree(value)?;
                agree(&value)?;
                agree((value, &value))?;
                prop_assert_eq!(Key::from(value), Key::from(value as i128));
            }
        }
    )*};
}

mod an_integer_is_one_key_by_value_by_reference_and_by_serde {
    use super::*;

    widths! { u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize }
}

#[test]
fn the_extremes_of_the_widest_integers_are_keys() {
    for value in [0, 1, u128::MAX] {
        assert_eq!(Key::of(&value).unwrap(), Key::from(value));
    }
    for value in [i128::MIN, -1, i128::MAX] {
        assert_eq!(Key::of(&value).unwrap(), Key::from(value));
    }
}

#[test]
fn a_wrapper_of_one_field_is_what_it_wraps() {
    #[derive(Serialize)]
    struct Tenant(String);
    #[derive(Serialize)]
    struct User(u64);
    #[derive(Serialize)]
    struct Pair((u8, u8));
    assert_eq!(Key::of(&User(7)).unwrap(), Key::from(7));
    assert_eq!(Key::of(&Tenant("a".into())).unwrap(), Key::from("a"));
    assert_eq!(Key::of(&Pair((1, 2))).unwrap(), Key::from((1, 2)));
    let both = (Tenant("a".into()), User(7));
    assert_eq!(Key::of(&both).unwrap(), Key::from(("a", 7)));
}

#[test]
fn every_other_value_is_its_encoding() {
    #[derive(Serialize)]
    struct Point {
        x: i32,
        label: &'static str,
    }
    #[derive(Serialize)]
    enum Choice {
        Unit,
        Wrapped(u8),
    }
    fn is_encoded<T: Serialize>(value: T) {
        let expected = Key::from_canonical(&postcard::to_allocvec(&value).unwrap());
        assert_eq!(Key::of(&value).unwrap(), expected);
    }
    is_encoded(Point { x: 1, label: "a" });
    is_encoded(Some(("tenant", 7_u32)));
    is_encoded(None::<u8>);
    is_encoded(Choice::Unit);
    is_encoded(Choice::Wrapped(7));
    is_encoded(true);
    is_encoded(1.5_f64);
    is_encoded(());
    is_encoded(vec!["a", "b"]);
    is_encoded(vec![1_u32, 2]);
    is_encoded(BTreeMap::from([("a", 1)]));
    // As a part of a tuple, too.
    let mut bytes = Vec::new();
    write_part(&"a", &mut bytes);
    write_part(&postcard::to_allocvec(&Some(7_u8)).unwrap(), &mut bytes);
    assert_eq!(
        Key::of(&("a", Some(7_u8))).unwrap(),
        Key::from_canonical(&bytes)
    );
}

#[test]
fn a_value_that_cannot_be_encoded_says_why() {
    struct Broken;
    impl Serialize for Broken {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("broken on purpose"))
        }
    }
    assert!(Key::of(&Broken).is_err());
    assert!(Key::of(&("a", ("b", Broken))).is_err());
    assert!(Key::of(&vec![Broken]).is_err());
}
