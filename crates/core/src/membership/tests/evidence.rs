//! Refused dials, and those who hold a link.

use super::*;

const ROUND_TRIP: Duration = Duration::from_millis(2);

impl World {
    /// A node that was never linked with another one dials it, and is refused.
    fn refuse_unmet(&mut self, index: usize, by: &NodeId) {
        let refusal = RefusedDial {
            lost: false,
            took: ROUND_TRIP,
        };
        let now = self.now;
        self.nodes[index].membership.dial_refused(now, by, refusal);
        self.pump(index);
    }

    fn state(&self, index: usize, other: usize) -> MemberState {
        let id = &self.nodes[other].id;
        let mut members = self.nodes[index].membership.members();
        members.find(|member| member.node == *id).unwrap().state
    }

    /// Two nodes lost their links to a third, which lives where nobody listens, and refuses each of them.
    fn break_links(&mut self, with: usize, of: &[usize]) {
        let id = self.nodes[with].id.clone();
        for index in of {
            self.unlink(*index, with);
        }
        for index in of {
            self.refuse(*index, &id);
        }
    }
}

#[test]
fn refused_by_two_is_down_within_50_ms() {
    let mut world = World::joined(5, 3, RuleSet::default());
    world.kill(2);
    let took = world.time_to_down(2, DOWN).unwrap();
    assert!(took <= 50 * MILLISECOND, "{took:?}");

    let mut world = World::joined(5, 3, RuleSet::without(&[Rule::LinkEvidence]));
    world.kill(2);
    let took = world.time_to_down(2, 2 * DOWN).unwrap();
    assert!(took > 500 * MILLISECOND, "{took:?}");
}

#[test]
fn refused_alone_is_down_after_400_ms_and_not_before() {
    let mut world = World::joined(5, 4, RuleSet::default());
    let dead = world.nodes[2].id.clone();
    world.silence(2);
    for index in [1, 3, 4] {
        // They do not know yet that their links are dead, and have no word to say about it.
        world.nodes[index].membership.link_down(&dead);
    }
    world.refuse(0, &dead);
    world.run(399 * MILLISECOND);
    assert_eq!(world.state(0, 2), MemberState::Suspected);
    world.run(2 * MILLISECOND);
    assert!(!world.sees_up(0, 2));
}

#[test]
fn refused_alone_while_it_lives_is_refuted() {
    let mut world = World::joined(5, 5, RuleSet::default());
    let alive = world.nodes[2].id.clone();
    world.refuse(0, &alive);
    world.run(5 * SECOND);
    assert_eq!(world.downs(), 0);
}

#[test]
fn a_report_of_another_is_nothing_while_the_own_link_is_fine() {
    let mut world = World::joined(3, 5, RuleSet::default());
    let (reporter, alive) = (world.nodes[1].id.clone(), world.nodes[2].id.clone());
    world.nodes[0]
        .membership
        .handle_refused(world.now, &reporter, &alive);
    world.pump(0);
    world.run(5 * SECOND);
    assert_eq!(world.downs(), 0);
}

#[test]
fn of_two_nodes_one_that_refuses_twice_is_dead_within_60_ms() {
    let mut world = World::joined(2, 6, RuleSet::default());
    let dead = world.nodes[1].id.clone();
    world.kill(1);
    world.run(30 * MILLISECOND);
    assert!(world.sees_up(0, 1), "it may be about to come");
    world.refuse(0, &dead);
    let took = world.time_to_down(1, DOWN).unwrap();
    assert!(took <= 30 * MILLISECOND, "{took:?}");
}

#[test]
fn of_two_nodes_one_that_refuses_once_has_400_ms_to_come() {
    let mut world = World::joined(2, 6, RuleSet::default());
    world.kill(1);
    let took = world.time_to_down(1, DOWN).unwrap();
    assert!(
        took >= 400 * MILLISECOND && took <= 420 * MILLISECOND,
        "{took:?}"
    );
}

#[test]
fn of_two_nodes_one_that_refuses_and_dials_by_itself_lives() {
    let mut world = World::joined(2, 6, RuleSet::default());
    let alive = world.nodes[1].id.clone();
    world.break_links(1, &[0]);
    world.run(20 * MILLISECOND);
    world.refuse(0, &alive);
    world.link(1, 0);
    world.run(5 * SECOND);
    assert_eq!(world.downs(), 0);
}

#[test]
fn whose_every_other_member_refuses_has_nobody_else_to_ask() {
    let mut world = World::joined(4, 7, RuleSet::default());
    let dead: Vec<NodeId> = (1..4).map(|index| world.nodes[index].id.clone()).collect();
    for index in 1..4 {
        world.kill(index);
    }
    world.run(30 * MILLISECOND);
    for node in &dead {
        world.refuse(0, node);
    }
    world.run(30 * MILLISECOND);
    for index in 1..4 {
        assert!(!world.sees_up(0, index), "{index}");
    }
}

#[test]
fn refused_by_two_while_a_third_holds_a_link_is_neither_down_nor_cut_off() {
    for seed in 0..20 {
        let mut world = World::joined(4, seed, RuleSet::default());
        world.mesh = false;
        let alive = world.nodes[3].id.clone();
        world.break_links(3, &[1, 2]);
        for _ in 0..50 {
            world.run(100 * MILLISECOND);
            for index in [1, 2] {
                world.refuse(index, &alive);
            }
        }
        assert_eq!(world.downs(), 0, "seed {seed}");
    }
}

#[test]
fn a_node_that_nobody_reaches_but_that_reaches_one_is_not_even_suspected() {
    for seed in 0..20 {
        let mut world = World::joined(4, seed, RuleSet::default());
        world.mesh = false;
        let alive = world.nodes[3].id.clone();
        world.unlink(1, 3);
        world.unlink(2, 3);
        for _ in 0..50 {
            for index in [1, 2] {
                world.refuse_unmet(index, &alive);
            }
            world.run(100 * MILLISECOND);
            for index in [1, 2] {
                assert_eq!(world.state(index, 3), MemberState::Up, "seed {seed}");
            }
        }
    }
}

#[test]
fn whom_nobody_vouches_for_is_suspected_where_it_was_never_met_and_dead_in_a_second() {
    let mut world = World::joined(4, 8, RuleSet::default());
    let dead = world.nodes[3].id.clone();
    world.silence(3);
    for index in 0..3 {
        world.nodes[index].links.remove(&3);
        world.nodes[index].membership.link_down(&dead);
    }
    world.refuse_unmet(0, &dead);
    world.run(410 * MILLISECOND);
    assert_ne!(world.state(0, 3), MemberState::Up);
    world.run(DOWN);
    assert!(!world.sees_up(0, 3));
}

#[test]
fn a_newcomer_that_is_refused_confirms_what_the_one_whose_link_broke_knows() {
    let mut world = World::joined(3, 8, RuleSet::default());
    let dead = world.nodes[2].id.clone();
    world.silence(2);
    for index in 0..2 {
        world.nodes[index].links.remove(&2);
        world.nodes[index].membership.link_down(&dead);
    }
    world.refuse(0, &dead);
    world.refuse_unmet(1, &dead);
    world.run(20 * MILLISECOND);
    assert!(!world.sees_up(0, 2) && !world.sees_up(1, 2));
}

#[test]
fn who_vouched_and_is_refused_later_takes_its_word_back() {
    let mut world = World::joined(3, 9, RuleSet::default());
    let dead = world.nodes[2].id.clone();
    world.nodes[2].alive = false;
    world.nodes[0].links.remove(&2);
    world.refuse(0, &dead);
    // The other one has not noticed yet that its link broke.
    world.run(20 * MILLISECOND);
    assert!(world.sees_up(0, 2));
    world.refuse(1, &dead);
    world.run(5 * MILLISECOND);
    world.refuse(0, &dead);
    world.run(20 * MILLISECOND);
    assert!(!world.sees_up(0, 2) && !world.sees_up(1, 2));
}
