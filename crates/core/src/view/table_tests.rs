//! What lookups do with the table of a type while the type changes, by counts and under several threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use super::table::{LATE_LOOKUPS, MANY_MOVED, PAGE_SLOTS};
use super::tests::{Instance, budget, key_in, owner_names, slot, view_of};
use super::*;
use crate::key::SLOTS;

fn infos(count: usize) -> Vec<Arc<ServiceInfo>> {
    (0..count)
        .map(|at| Instance::new(&format!("i{at}")).info(at as u64))
        .collect()
}

fn joins(info: &Arc<ServiceInfo>) -> Change {
    (None, Some(Arc::clone(info)))
}

fn leaves(info: &Arc<ServiceInfo>) -> Change {
    (Some(Arc::clone(info)), None)
}

/// What lookups did beyond reading.
#[derive(Debug, PartialEq, Eq)]
struct Done {
    scored: u32,
    carried_alone: u32,
    carried: u32,
}

/// What they did in that table, meanwhile.
fn done(view: &View, lookups: impl FnOnce()) -> Done {
    let counts = &view.table.cells().unwrap().counts;
    let now = || {
        let load = |count: &AtomicU32| count.load(Ordering::Relaxed);
        [&counts.scored, &counts.carried_alone, &counts.carried].map(load)
    };
    let before = now();
    lookups();
    let [scored, carried_alone, carried] = now();
    Done {
        scored: scored - before[0],
        carried_alone: carried_alone - before[1],
        carried: carried - before[2],
    }
}

/// A view after some instances left, one by one, and others came; the slots of many pages were known before.
fn changed_after(known: usize) -> View {
    let infos = infos(110);
    let mut view = view_of(&infos[..100], budget());
    for at in 0..known {
        view.owner(key_in(at));
    }
    for at in 0..10 {
        for change in [leaves(&infos[at * 7]), joins(&infos[100 + at])] {
            view = view.changed(view.version() + 1, &[change]);
        }
    }
    view
}

#[test]
fn a_lookup_after_changes_carries_its_own_slot_alone() {
    const PAGES: usize = 300;
    let view = changed_after(PAGES * PAGE_SLOTS);
    let of_page = |page: usize| slot(page * PAGE_SLOTS + page % PAGE_SLOTS);
    let mut lost = 0;
    for page in 0..PAGES {
        let looked_up = of_page(page);
        let did = done(&view, || {
            assert_eq!(
                view.owner(key_in(looked_up.index()))
                    .map(|info| info.name()),
                view.name(view.score(looked_up)[0])
            );
        });
        if did.scored == 0 {
            let alone = Done {
                scored: 0,
                carried_alone: 1,
                carried: 0,
            };
            assert_eq!(did, alone, "page {page}");
        } else {
            // Whose owner left, where nobody knows who came next.
            lost += 1;
        }
    }
    // A tenth of them left.
    assert!((1..PAGES / 5).contains(&lost), "{lost}");
}

#[test]
fn a_page_that_is_looked_up_often_is_brought_up_to_date_once() {
    let infos = infos(110);
    let mut view = view_of(&infos[..100], budget());
    for at in 0..PAGE_SLOTS {
        view.owner(key_in(at));
    }
    for joining in &infos[100..] {
        view = view.changed(view.version() + 1, &[joins(joining)]);
    }
    let did = done(&view, || {
        for _ in 0..10 * usize::from(LATE_LOOKUPS) {
            view.owner(key_in(7));
        }
    });
    assert_eq!(did.scored, 0);
    assert_eq!(did.carried, PAGE_SLOTS as u32);
    assert_eq!(did.carried_alone, u32::from(LATE_LOOKUPS));
}

/// Rule: where a type changes all the time, a lookup does the work of a slot or two, and not that of a page.
#[test]
fn an_instance_that_comes_and_goes_all_the_time_costs_lookups_a_slot_or_two() {
    const CHANGES: usize = 400;
    const LOOKUPS: usize = 100;
    let infos = infos(101);
    let mut view = view_of(&infos, budget());
    // All slots of some pages.
    let known = 100 * PAGE_SLOTS;
    let keys: Vec<usize> = (0..known).map(|number| number * 7 % known).collect();
    for key in &keys {
        view.owner(key_in(*key));
    }
    let mut next = keys.iter().cycle();
    let (mut scored, mut carried) = (0, 0);
    for change in 0..CHANGES {
        let change = if change % 2 == 0 {
            leaves(&infos[100])
        } else {
            joins(&infos[100])
        };
        view = view.changed(view.version() + 1, &[change]);
        let did = done(&view, || {
            for key in next.by_ref().take(LOOKUPS) {
                view.owner(key_in(*key));
            }
        });
        scored += did.scored;
        carried += did.carried + did.carried_alone;
    }
    let lookups = (CHANGES * LOOKUPS) as u32;
    assert!(carried <= 2 * lookups, "{carried} slots in {lookups}");
    // It is the first owner of one in a hundred.
    assert!(scored <= lookups / 20, "{scored} of {lookups}");
}

#[test]
fn a_page_is_brought_up_to_date_before_what_moved_is_forgotten() {
    let infos = infos(250);
    let mut view = view_of(&infos[..50], budget());
    view.owner(key_in(7));
    for joining in &infos[50..] {
        view = view.changed(view.version() + 1, &[joins(joining)]);
        let did = done(&view, || {
            view.owner(key_in(7));
        });
        assert_eq!(did.scored, 0);
    }
    // Many times over: what moved when it was first looked up is long forgotten.
    assert!(infos.len() - 50 > 4 * MANY_MOVED && view.table.moved_since(1).is_none());
}

/// Keys whose slots are spread by chance, as those of real ones.
fn random_keys(count: u64, seed: u64) -> impl Iterator<Item = Key> {
    (0..count).map(move |number| Key::from((seed << 32) + number))
}

fn look_up(view: &View, keys: impl Iterator<Item = Key>, n: usize) -> u32 {
    let look = || keys.for_each(|key| assert_eq!(view.owners(key, n).len(), n));
    done(view, look).scored
}

/// Rule: the second lookup of a key is not scored, as long as no more keys are in use than there are words.
#[test]
fn ten_thousand_keys_of_three_owners_are_scored_once() {
    for count in [100, 1_000, 4_500] {
        let view = view_of(&infos(count), budget());
        let keys = || random_keys(10_000, 1);
        let first = look_up(&view, keys(), 3);
        assert!(first > 9_900, "{first}");
        assert_eq!(look_up(&view, keys(), 3), 0, "{count} instances");
    }
}

#[test]
fn keys_of_three_owners_are_back_after_one_round_whatever_displaced_them() {
    let view = view_of(&infos(40), budget());
    let keys = || random_keys(10_000, 1);
    look_up(&view, keys(), 3);
    look_up(&view, random_keys(100_000, 2), 3);
    look_up(&view, keys(), 3);
    // Those that were still there at the beginning of the round may have been the oldest.
    let again = look_up(&view, keys(), 3);
    assert!(again < 20, "{again}");
}

#[test]
fn lookups_of_one_owner_displace_nothing() {
    let view = view_of(&infos(40), budget());
    let keys = || random_keys(10_000, 1);
    look_up(&view, keys(), 3);
    look_up(&view, random_keys(200_000, 2), 1);
    assert_eq!(look_up(&view, keys(), 3), 0);
}

/// Rule: each answer is that of the view which was asked, whatever changes and other readers do meanwhile. Those that read
/// slots of earlier views write little, and so all views of the last changes are read side by side.
#[test]
fn readers_beside_a_writer_find_what_is_computed_for_their_view() {
    const CHANGES: usize = 500;
    const READERS: usize = 3;
    // Lookups before the next change.
    const LOOKUPS: usize = 60;
    let all: Vec<_> = (0..60)
        .map(|at| {
            let mut instance = Instance::new(&format!("i{at}"));
            instance.weight = if at % 7 == 0 { 300 } else { 100 };
            instance.info(at)
        })
        .collect();
    let first = view_of(&all[..40], budget());
    first.owner(key_in(0));
    let current = &Mutex::new(Arc::new(first));
    let (lookups, ended) = (&AtomicUsize::new(0), &AtomicBool::new(false));
    std::thread::scope(|scope| {
        let read = |reader: usize| {
            let (mut turn, mut last) = (reader, 0);
            while !ended.load(Ordering::Relaxed) {
                let view = Arc::clone(&current.lock().unwrap());
                assert!(view.version() >= last);
                last = view.version();
                // Some hold it longer than the others, who go on to later ones.
                for _ in 0..20 << (2 * reader) {
                    turn += 1;
                    // Three pages of one set, some slots of them more often than others.
                    let step = if turn % 2 == 0 { turn } else { 7 };
                    let index = turn * step % (3 * PAGE_SLOTS);
                    let ranked = view.score(slot(index));
                    let expected = ranked.map(|seat| view.name(seat));
                    let found = view.owner(key_in(index)).map(|info| info.name());
                    assert_eq!(found, expected[0], "slot {index}");
                    let found = view.owners(key_in(index), 3);
                    let found: Vec<_> = found.iter().map(|info| Some(info.name())).collect();
                    assert_eq!(found, expected[..3], "slot {index}");
                    lookups.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let readers: Vec<_> = (0..READERS)
            .map(|reader| scope.spawn(move || read(reader)))
            .collect();
        let mut here: Vec<bool> = (0..60).map(|at| at < 40).collect();
        let mut view = Arc::clone(&current.lock().unwrap());
        for change in 0..CHANGES {
            // One comes and goes, and the others one after the other.
            let at = if change % 3 == 0 { 5 } else { change * 7 % 60 };
            here[at] = !here[at];
            let change = if here[at] {
                joins(&all[at])
            } else {
                leaves(&all[at])
            };
            view = Arc::new(view.changed(view.version() + 1, &[change]));
            *current.lock().unwrap() = Arc::clone(&view);
            let before = lookups.load(Ordering::Relaxed);
            // Those that found something wrong do not go on.
            while lookups.load(Ordering::Relaxed) < before + LOOKUPS
                && !readers.iter().all(|reader| reader.is_finished())
            {
                std::thread::yield_now();
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
}

/// Rule: what readers and changes do at once leads nobody astray: pages are brought up to date by whoever comes, while
/// others read them by earlier and by later views.
#[test]
fn readers_of_old_and_new_views_on_several_threads_find_what_the_definition_says() {
    const CHANGES: usize = 400;
    // Pages whose words are in one set, and others.
    let places: Vec<usize> = (0..64).chain((0..64).map(|at| at + (1 << 16))).collect();
    let all: Vec<_> = (0..40)
        .map(|at| {
            let mut instance = Instance::new(&format!("i{at}"));
            instance.weight = if at % 5 == 0 { 300 } else { 100 };
            instance.info(at)
        })
        .collect();
    let mut views = vec![Arc::new(view_of(&all[..30], budget()))];
    let mut here: Vec<bool> = (0..40).map(|at| at < 30).collect();
    views[0].owner(key_in(0));
    for change in 0..CHANGES {
        let at = change * 7 % 40;
        here[at] = !here[at];
        let info = Some(Arc::clone(&all[at]));
        let change = if here[at] { (None, info) } else { (info, None) };
        let last = views.last().unwrap();
        views.push(Arc::new(last.changed(last.version() + 1, &[change])));
    }
    let latest = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (views, latest, places) = (&views, &latest, &places);
            scope.spawn(move || {
                let mut turn = reader;
                loop {
                    let now = latest.load(Ordering::Relaxed);
                    // Each reads some views that are held while the others go on.
                    let view = &views[now.saturating_sub(reader)];
                    for index in places {
                        turn += 1;
                        let n = 1 + turn % 4;
                        let found = owner_names(view, *index, n);
                        let ranked = view.score(slot(*index));
                        let expected = ranked.into_iter().filter_map(|seat| view.name(seat));
                        let expected: Vec<_> =
                            expected.take(n).map(|name| name.to_string()).collect();
                        assert_eq!(found, expected, "slot {index} of view {now}");
                    }
                    if now == CHANGES {
                        return;
                    }
                    // Another one may have moved it on.
                    let _ =
                        latest.compare_exchange(now, now + 1, Ordering::Relaxed, Ordering::Relaxed);
                }
            });
        }
    });
}

#[test]
fn a_view_that_is_held_while_its_type_changes_is_answered_from_a_table_of_its_own() {
    let infos: Vec<_> = (0..20)
        .map(|at| Instance::new(&format!("i{at}")).info(at))
        .collect();
    let held = view_of(&infos, budget());
    held.owner(key_in(7));
    let gone = (Some(Arc::clone(&infos[3])), None);
    let next = held.changed(2, &[gone]);
    let fresh = view_of(&infos, TableBudget::new(0));
    for index in (0..5_000).chain(0..5_000) {
        next.owner(key_in(index));
        assert_eq!(owner_names(&held, index, 3), owner_names(&fresh, index, 3));
    }
    let own = held.table.of_an_old_view().unwrap();
    assert!(own.first(slot(4_000)).of(held.table.epoch()).is_some());
}

#[test]
fn a_type_that_outgrows_its_narrow_table_and_many_changes_at_once_lead_to_the_same_owners() {
    let infos: Vec<_> = (0..700)
        .map(|at| Instance::new(&format!("i{at}")).info(at))
        .collect();
    let mut view = view_of(&infos[..250], budget());
    let places = [0, 1, 31, 32, 1 << 15, SLOTS - 1];
    for (version, count) in [253, 254, 255, 256, 400, 700].into_iter().enumerate() {
        for index in places {
            view.owners(key_in(index), 3);
        }
        let joins: Vec<_> = infos[view.services().len()..count]
            .iter()
            .map(|info| (None, Some(Arc::clone(info))))
            .collect();
        view = view.changed(version as u64 + 2, &joins);
        let fresh = view_of(&infos[..count], TableBudget::new(0));
        for index in places {
            assert_eq!(owner_names(&view, index, 4), owner_names(&fresh, index, 4));
        }
    }
}
