//! A member that says what is not so of others: the last node of each world.

use super::*;

/// What that node says to another one, as itself.
fn says(world: &mut World, from: usize, to: usize, updates: Vec<Member<Identity>>) {
    let bytes = gossip(world, from, to, updates);
    let (now, sender) = (world.now, world.nodes[from].id.clone());
    world.nodes[to]
        .membership
        .handle_packet(now, &sender, &bytes);
    world.pump(to);
}

fn counts(world: &World, index: usize) -> MembershipCounts {
    world.nodes[index].membership.counts()
}

/// As node 0 knows it.
fn identity(world: &World, index: usize) -> Identity {
    let member = world.nodes[0].membership.engine_member(key(&name(index)));
    member.map_or_else(
        || Identity::new(world.nodes[index].id.clone(), 0, address(index)),
        |member| member.id().clone(),
    )
}

/// Whether node 0 still sees node 1, after one packet about a later identity of it.
fn survives(rules: RuleSet, state: State, number: u64, rejoins: u32) -> bool {
    let mut world = World::joined(4, 21, rules);
    let later = Identity::new(life(1, number), rejoins, address(9));
    says(&mut world, 3, 0, vec![Member::new(later, 0, state)]);
    world.run(10 * MILLISECOND);
    world.sees_up(0, 1)
}

#[test]
fn one_packet_about_a_life_that_never_was_shuts_nobody_out() {
    for (number, rejoins) in [
        (2, 0),
        (1_000_000, 9),
        (u64::MAX, u32::MAX),
        (1, 1),
        (1, u32::MAX),
    ] {
        for state in [State::Alive, State::Down] {
            assert!(
                survives(RuleSet::default(), state, number, rejoins),
                "{state:?} of {number}+{rejoins}"
            );
        }
    }
    let off = RuleSet::without(&[Rule::OwnWord]);
    assert!(!survives(off, State::Down, 2, 0));
    let off = RuleSet::without(&[Rule::OwnWord]);
    assert!(!survives(off, State::Down, 1, u32::MAX));
    let off = RuleSet::without(&[Rule::OwnWord, Rule::PlausibleGenerations]);
    assert!(!survives(off, State::Down, u64::MAX, 0));
}

/// Whether node 1, which was dead, is seen again once it starts anew, after somebody made up a later life of it.
fn comes_back(rules: RuleSet) -> bool {
    let mut world = World::joined(3, 22, rules);
    world.kill(1);
    world.run(5 * SECOND);
    let later = Identity::new(life(1, 1_000_000), 7, address(9));
    says(&mut world, 2, 0, vec![Member::new(later, 0, State::Down)]);
    world.restart(1, 2);
    world.link(0, 1);
    world.run(SECOND);
    world.sees_up(0, 1)
}

#[test]
fn a_made_up_later_life_of_the_dead_gives_way_to_the_node_itself() {
    assert!(comes_back(RuleSet::default()));
    assert!(!comes_back(RuleSet::without(&[Rule::OwnWord])));
}

#[test]
fn a_later_life_is_taken_from_two_who_say_so_where_the_node_cannot_be_asked() {
    let mut world = World::joined(5, 23, RuleSet::default());
    world.silence(1);
    world.run(5 * SECOND);
    let later = Identity::new(life(1, 2), 0, address(9));
    world.nodes[1].id = life(1, 2);
    says(&mut world, 3, 0, vec![Member::alive(later.clone())]);
    assert!(!world.sees_up(0, 1), "one alone");
    says(&mut world, 4, 0, vec![Member::alive(later)]);
    assert!(world.sees_up(0, 1));
}

/// Whether node 0 keeps node 1 as what it is, of three nodes, while node 2 first raises a doubt and then tells of a return.
fn stays_what_it_is(doubt: State) -> bool {
    let mut world = World::joined(3, 29, RuleSet::default());
    let known = identity(&world, 1);
    says(&mut world, 2, 0, vec![Member::new(known.clone(), 0, doubt)]);
    let later = Identity::new(life(1, 1), known.rejoins + 1, address(9));
    says(&mut world, 2, 0, vec![Member::alive(later)]);
    identity(&world, 1) == known && world.sees_up(0, 1)
}

#[test]
fn of_three_one_cannot_raise_a_doubt_and_settle_it_with_a_return_of_its_own_making() {
    for doubt in [State::Suspect, State::Down] {
        assert!(stays_what_it_is(doubt), "{doubt:?}");
    }
}

/// Whether a node that does not answer is down after twice a `down_period`, while one says that it is down and one, with an
/// incarnation that cannot be, that it lives.
fn is_convicted_against(incarnation: foca::Incarnation) -> bool {
    let mut world = World::joined(12, 25, RuleSet::default());
    world.silence(1);
    world.partition(&[0], &(2..12).collect::<Vec<_>>());
    let accused = identity(&world, 1);
    says(&mut world, 3, 0, vec![Member::down(accused.clone())]);
    let revived = Member::new(accused, incarnation, State::Alive);
    says(&mut world, 4, 0, vec![revived]);
    world.run(DOWN + MILLISECOND);
    !world.sees_up(0, 1)
}

#[test]
fn a_word_that_cannot_be_refutes_nothing() {
    assert!(is_convicted_against(u16::MAX));
}

/// How often node 0 took node 1 for dead while node 3 said so, fifty times a second.
fn downs_while_accused(rules: RuleSet) -> (usize, MembershipCounts) {
    let mut world = World::joined(4, 24, rules);
    for _ in 0..500 {
        let accused = identity(&world, 1);
        says(&mut world, 3, 0, vec![Member::down(accused)]);
        world.run(20 * MILLISECOND);
    }
    let events = world.events_of(0).into_iter();
    let downs = events.filter(|event| matches!(event, MemberEvent::Down { .. }));
    (downs.count(), counts(&world, 0))
}

#[test]
fn one_accuser_keeps_nobody_down_who_answers() {
    let (downs, counts) = downs_while_accused(RuleSet::default());
    assert_eq!(downs, 0);
    // Asked a few times, ever more rarely.
    assert!((1..=5).contains(&counts.acquitted), "{counts:?}");
    assert!(counts.unheeded > 400, "{counts:?}");
    let (downs, _) = downs_while_accused(RuleSet::without(&[Rule::TwoAccusers]));
    assert!(downs > 5, "{downs}");
}

#[test]
fn one_accuser_is_believed_about_who_does_not_answer_and_two_are_at_once() {
    let mut world = World::joined(12, 25, RuleSet::default());
    world.silence(1);
    let accused = identity(&world, 1);
    says(&mut world, 3, 0, vec![Member::down(accused.clone())]);
    assert!(world.sees_up(0, 1), "it is asked first");
    says(&mut world, 4, 0, vec![Member::down(accused)]);
    assert!(!world.sees_up(0, 1));

    let mut world = World::joined(12, 25, RuleSet::default());
    world.silence(1);
    // Nobody else finds out by itself.
    world.partition(&[0], &(2..12).collect::<Vec<_>>());
    let accused = identity(&world, 1);
    says(&mut world, 3, 0, vec![Member::down(accused)]);
    world.run(DOWN + MILLISECOND);
    assert!(!world.sees_up(0, 1));
}

#[test]
fn a_suspicion_at_the_end_of_the_numbers_makes_nobody_come_back_under_another_identity() {
    let returns = |rules: RuleSet| {
        let mut world = World::joined(4, 26, rules);
        for _ in 0..20 {
            let accused = world.nodes[0].membership.me.clone();
            let suspect = Member::new(accused, Incarnation::MAX, State::Suspect);
            says(&mut world, 3, 0, vec![suspect]);
            world.run(SECOND);
        }
        world.nodes[0].membership.returns()
    };
    assert_eq!(returns(RuleSet::default()), 0);
    assert!(returns(RuleSet::without(&[Rule::OwnWord])) > 10);
}

#[test]
fn a_rival_that_cannot_be_is_not_looked_for_and_the_others_once_a_second() {
    let mut world = World::joined(3, 27, RuleSet::default());
    for number in (2..200).chain(u64::MAX - 20..=u64::MAX) {
        let rival = Identity::new(life(0, number), 0, address(9));
        says(&mut world, 2, 0, vec![Member::alive(rival)]);
        world.run(10 * MILLISECOND);
    }
    let counts = counts(&world, 0);
    assert!(counts.conflicts <= 4, "{counts:?}");
    assert_eq!(counts.implausible, 21);
}

#[test]
fn two_members_that_agree_tell_a_node_that_its_clock_is_behind() {
    let day = MAX_SKEW.as_micros() as u64;
    let now = Instant::ZERO;
    let mut generations = Generations::new(1, now);
    generations.set_joined();
    let plausible = |generations: &Generations, number| {
        generations.is_plausible(now, Generation { number, random: 0 })
    };
    assert!(plausible(&generations, 2 * day));
    assert!(!plausible(&generations, 10 * day));
    // One that lies tells nothing, whatever it says and however often.
    generations.witness(now, &life(1, u64::MAX));
    generations.witness(now, &life(1, u64::MAX - 1));
    assert!(!plausible(&generations, 10 * day));
    // It is no later than the lower one says, who may be a day ahead.
    generations.witness(now, &life(2, 10 * day));
    assert!(plausible(&generations, 11 * day));
    assert!(!plausible(&generations, 11 * day + 1));
    assert!(generations.may_take(now, 10 * day));
    assert!(!generations.may_take(now, 10 * day + 1));
}
