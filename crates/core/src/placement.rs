//! Weighted rendezvous over slots: who owns a slot, and who comes next. A pure function of a set of names and weights.
//!
//! For a slot, every instance draws `draw = mix(H(name) ^ mix(slot))`, where `H` is XXH3-64 with seed 0 of the instance
//! name's UTF-8 bytes and `mix` the finaliser of SplitMix64. Read as a number in [0, 1), `1 − draw` is exponentially
//! distributed after `−ln(draw)`; the instance with the smallest `−ln(draw) / weight` owns the slot, the next smallest
//! comes next, and so on (weighted rendezvous hashing, Schindelhauer & Schomaker 2005). Removing an instance therefore
//! moves its slots alone, and changing a weight moves slots in its direction only.
//!
//! `−ln` is computed in integers: the same on every platform, and never decreasing where the draw falls.
//! Instances of equal cost per weight are ordered by draw, name hash, and name.
//!
//! This is placement version 2: version 1 had 2¹⁶ slots, and was the same otherwise. Golden vectors pin it
//! (`docs/placement-v2.json`); a change of anything here is a new version, and nodes of different versions refuse each
//! other.

use std::cmp::Ordering;

use xxhash_rust::xxh3::xxh3_64;

use crate::id::InstanceName;
use crate::key::Slot;

/// Names this specification; nodes of another version are refused.
pub const PLACEMENT_VERSION: u32 = 2;

/// The hash of an instance name.
pub fn name_hash(name: &InstanceName) -> u64 {
    xxh3_64(name.as_bytes())
}

/// What placement knows of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// [`name_hash`] of its name.
    pub(crate) hash: u64,
    /// Its weight.
    pub(crate) weight: u16,
}

/// What of a slot goes into every instance's draw.
#[inline]
pub(crate) fn salt(slot: Slot) -> u64 {
    mix((slot.index() as u64).wrapping_add(0x9e37_79b9_7f4a_7c15))
}

/// What an instance draws for a slot; between instances of equal weight the larger one wins.
#[inline]
pub(crate) fn draw(name_hash: u64, salt: u64) -> u64 {
    mix(name_hash ^ salt)
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
#[inline]
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// ln 2 in units of 2⁻⁶⁴, rounded up, so that [`cost`] never decreases from one octave to the next.
const LN_2: u128 = 0xb172_17f7_d1cf_79ac;

/// Terms of the series in [`cost`]: the first that is left out is below 2⁻⁶⁴.
const TERMS: u32 = 20;

/// `−ln((draw + 1) / 2⁶⁴)` in units of 2⁻⁶⁴, at most 45 × 2⁶⁴.
///
/// With `m · 2⁻ᵉ = (draw + 1) / 2⁶⁴` and `m` in (½, 1], this is `e · ln 2 + 2 · artanh((1 − m) / (1 + m))`, the second by
/// its series. All operations round down and none subtracts what depends on the draw twice, so that the result never
/// increases with the draw.
pub(crate) fn cost(draw: u64) -> u128 {
    let octaves = draw.leading_zeros();
    // 1 − m, exact: what is missing to the top of the octave.
    let missing = (1_u128 << 64) - ((u128::from(draw) + 1) << octaves);
    let y = (missing << 64) / ((2_u128 << 64) - missing);
    let square = (y * y) >> 64;
    let mut sum = 0_u128;
    for term in (0..TERMS).rev() {
        sum = ((sum * square) >> 64) + (1_u128 << 64) / u128::from(2 * term + 1);
    }
    u128::from(octaves) * LN_2 + 2 * ((sum * y) >> 64)
}

/// The order of preference of two instances for a slot, given what they drew; names break the last tie.
pub(crate) fn prefer(a: (Candidate, u64), b: (Candidate, u64)) -> Ordering {
    let ((a, a_draw), (b, b_draw)) = (a, b);
    let by_cost = if a.weight == b.weight {
        Ordering::Equal
    } else {
        (cost(a_draw) * u128::from(b.weight)).cmp(&(cost(b_draw) * u128::from(a.weight)))
    };
    by_cost.then(b_draw.cmp(&a_draw)).then(a.hash.cmp(&b.hash))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_cost_is_the_negative_logarithm() {
        for draw in [
            0,
            1,
            2,
            3,
            1 << 20,
            (1 << 63) - 1,
            1 << 63,
            (1 << 63) + 1,
            3 << 62,
            u64::MAX - 1,
        ] {
            let exact = -(((draw as f64) + 1.0) / 2_f64.powi(64)).ln();
            let ours = cost(draw) as f64 / 2_f64.powi(64);
            assert!(
                (exact - ours).abs() < 1e-15 * (1.0 + exact),
                "{draw}: {exact} {ours}"
            );
        }
        assert_eq!(cost(u64::MAX), 0);
    }

    proptest! {
        #[test]
        fn the_cost_never_increases_with_the_draw(draw in any::<u64>(), shift in 0_u32..64) {
            let draw = draw >> shift;
            if let Some(next) = draw.checked_add(1) {
                prop_assert!(cost(draw) >= cost(next));
            }
        }

        #[test]
        fn preference_is_a_total_order(
            hashes in proptest::array::uniform3(any::<u64>()),
            weights in proptest::array::uniform3(1_u16..=1000),
            slot in 0..crate::key::SLOTS,
        ) {
            let salt = salt(Slot::new(slot).unwrap());
            let [a, b, c] = [0, 1, 2].map(|at| {
                let candidate = Candidate { hash: hashes[at], weight: weights[at] };
                (candidate, draw(candidate.hash, salt))
            });
            prop_assert_eq!(prefer(a, b), prefer(b, a).reverse());
            if prefer(a, b).is_le() && prefer(b, c).is_le() {
                prop_assert!(prefer(a, c).is_le());
            }
        }
    }
}
