//! The schedule alone, over a cache that only remembers what was written where: who runs when, and that everybody finds
//! exactly what it has read and said.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};

use kernels::attention::BLOCK;
use proptest::prelude::*;

use super::super::blocks::Blocks;
use super::super::rows::Rows;
use super::super::schedule::{Past, Schedule, TooLong, Turn};

/// One that says its own number and the count of what it has said, `answers` times.
struct Who {
    name: u32,
    answers: u32,
    said: u32,
    /// What was read and said, as the world outside sees it.
    tokens: Vec<u32>,
}

/// A schedule over a cache that holds, at every place, a digest of all tokens up to there.
struct World {
    schedule: Schedule<Who>,
    memory: HashMap<(usize, usize), u64>,
    /// Steps are planned ahead where that can be.
    looks_ahead: bool,
    /// The step that was.
    sent: Option<Rows>,
    ahead: usize,
    /// Names, in the order in which they came; in which they took part first, and in which they ended.
    came: Vec<u32>,
    started: Vec<u32>,
    ended: Vec<(u32, Past)>,
}

fn digest(tokens: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    tokens.hash(&mut hasher);
    hasher.finish()
}

impl World {
    fn new(blocks: usize, most_idle: usize) -> World {
        let schedule = Schedule::new(Blocks::new(blocks, most_idle));
        let (came, started, ended) = (Vec::new(), Vec::new(), Vec::new());
        let (memory, looks_ahead, sent, ahead) = (HashMap::new(), false, None, 0);
        World { schedule, memory, looks_ahead, sent, ahead, came, started, ended }
    }

    fn admit(&mut self, name: u32, prompt: Vec<u32>, answers: u32) {
        let who = Who { name, answers, said: 0, tokens: prompt.clone() };
        self.schedule.admit(who, prompt).unwrap();
        self.came.push(name);
    }

    /// One step. Gives who took part, with how many tokens.
    fn step(&mut self, budget: usize) -> Vec<(u32, usize)> {
        let sent = self.sent.take();
        let rows = sent.clone().unwrap_or_else(|| {
            let mut rows = Rows::default();
            self.schedule.plan(budget, &mut rows);
            rows
        });
        let planned: Vec<(u32, Vec<u32>)> = self.schedule.planned().map(|who| (who.name, who.tokens.clone())).collect();
        // A step that was sent ahead has all it was sent with, also those who have left since.
        let names: Vec<u32> = match sent {
            Some(_) => rows.whose().iter().map(|number| self.came[*number as usize]).collect(),
            None => planned.iter().map(|(name, _)| *name).collect(),
        };
        self.compute(&rows, &names, &planned);
        let mut part: Vec<(u32, usize)> = names.iter().map(|name| (*name, 0)).collect();
        rows.sequences().iter().for_each(|&sequence| part[sequence as usize].1 += 1);
        for (name, _) in &part {
            if !self.started.contains(name) {
                self.started.push(*name);
            }
        }
        let mut next = Rows::default();
        if self.looks_ahead && self.schedule.plan_ahead(|who| who.said + 1 < who.answers, &mut next) {
            self.sent = Some(next);
            self.ahead += 1;
        }
        let (ended, came) = (&mut self.ended, &self.came);
        self.schedule.ran(|who, past, place| {
            assert_eq!(came[rows.whose()[place] as usize], who.name, "somebody else's token");
            who.said += 1;
            if who.said == who.answers {
                ended.push((who.name, past));
                return Turn::Ended;
            }
            let token = 1_000_000 * (who.name + 1) + who.said;
            who.tokens.push(token);
            Turn::Said(token)
        });
        if self.schedule.is_empty() {
            self.sent = None;
        }
        part
    }

    /// Writes every row where it says, after looking whether it sees what it must. `planned` is what those of them say who are
    /// still there; whatever the others write nobody may see.
    fn compute(&mut self, rows: &Rows, names: &[u32], planned: &[(u32, Vec<u32>)]) {
        let places = rows.places().unwrap();
        let mut written = HashSet::new();
        for row in 0..places.rows() {
            let sequence = places.sequences()[row] as usize;
            let position = places.positions()[row] as usize;
            assert!(written.insert(places.place(row)), "two write to one place");
            let Some((name, tokens)) = planned.iter().find(|(name, _)| *name == names[sequence]) else {
                self.memory.insert(places.place(row), 0);
                continue;
            };
            let known = rows.next().iter().all(|(next, _)| *next as usize != row);
            assert!(!known || rows.tokens()[row] == tokens[position], "{name} at {position}");
            self.memory.insert(places.place(row), digest(&tokens[..=position]));
            let table = places.table(sequence as u32);
            for seen in (0..=position).rev() {
                let place = (table[seen / BLOCK] as usize, seen % BLOCK);
                assert_eq!(self.memory[&place], digest(&tokens[..=seen]), "{name} at {position} sees {seen}");
            }
        }
    }

    fn run(&mut self, budget: usize) -> usize {
        let mut steps = 0;
        while !self.schedule.is_empty() {
            assert!(!self.step(budget).is_empty(), "a step without anybody never ends");
            steps += 1;
            assert!(steps < 100_000, "somebody never ends");
        }
        steps
    }

    fn past(&self, name: u32) -> Past {
        self.ended.iter().find(|ended| ended.0 == name).expect("it has ended").1
    }
}

fn prompt(length: usize, from: u32) -> Vec<u32> {
    (from..from + length as u32).collect()
}

#[test]
fn speakers_and_the_next_part_of_a_prompt_share_a_step() {
    let mut world = World::new(20, 0);
    world.admit(0, prompt(10, 0), 5);
    assert_eq!(world.step(100), [(0, 10)]);
    world.admit(1, prompt(150, 1000), 2);
    assert_eq!(world.step(100), [(0, 1), (1, 100)]);
    assert_eq!(world.step(100), [(0, 1), (1, 50)]);
    assert_eq!(world.step(100), [(0, 1), (1, 1)]);
    assert_eq!(world.step(0), [(0, 1)], "speakers need no budget");
    assert!(world.schedule.is_empty());
}

#[test]
fn while_everybody_speaks_the_next_step_is_planned_ahead() {
    let mut world = World::new(20, 0);
    world.looks_ahead = true;
    world.admit(0, prompt(70, 0), 10);
    world.admit(1, prompt(3, 1000), 3);
    assert_eq!(world.step(40), [(0, 40)]);
    assert_eq!((world.step(40), world.ahead), (vec![(0, 30), (1, 3)], 1), "both prompts have been read");
    world.admit(2, prompt(3, 2000), 2);
    assert_eq!((world.step(40), world.ahead), (vec![(0, 1), (1, 1)], 1), "one who joins waits for what was sent");
    assert_eq!(world.step(40), [(0, 1), (1, 1), (2, 3)]);
    assert_eq!(world.step(40), [(0, 1), (2, 1)], "one who is known to end is not in it");
    world.run(40);
    assert_eq!(world.ended.len(), 3);
    assert!(world.ahead > 6, "{} steps were planned ahead", world.ahead);
}

#[test]
fn who_leaves_while_a_step_of_its_own_is_under_way_leaves_nothing_behind() {
    let mut world = World::new(6, 6);
    world.looks_ahead = true;
    for round in 0..20 {
        world.admit(2 * round, prompt(62, 1000 * round), 9);
        world.admit(2 * round + 1, prompt(62, 1000 * round), 9);
        (0..1 + round % 5).for_each(|_| drop(world.step(500)));
        world.schedule.cancel(|who| who.name == 2 * round);
        world.run(100);
    }
    assert_eq!(world.ended.iter().filter(|(name, _)| name % 2 == 1).count(), 20);
}

#[test]
fn nobody_overtakes_one_who_waits_for_blocks() {
    let mut world = World::new(4, 0);
    world.admit(0, prompt(100, 0), 40);
    world.admit(1, prompt(150, 1000), 1);
    world.admit(2, prompt(3, 2000), 1);
    assert_eq!(world.step(512), [(0, 100)], "3 blocks are not there yet for the second; the third would have had one");
    world.run(512);
    assert_eq!(world.started, [0, 1, 2]);
}

#[test]
fn more_sequences_than_blocks_all_end_in_order() {
    let mut world = World::new(3, 1);
    (0..200).for_each(|name| world.admit(name, prompt(1 + name as usize % 60, 1000 * name), 1 + name % 5));
    world.run(64);
    assert_eq!(world.started, (0..200).collect::<Vec<_>>());
    assert_eq!(world.ended.len(), 200);
}

#[test]
fn a_prompt_for_which_the_blocks_do_not_suffice_is_refused_with_both_numbers() {
    let mut world = World::new(3, 0);
    let who = Who { name: 0, answers: 1, said: 0, tokens: Vec::new() };
    assert_eq!(world.schedule.admit(who, prompt(192, 0)), Err(TooLong { needed: 4, exist: 3 }));
    world.admit(1, prompt(191, 0), 1);
    world.run(512);
}

#[test]
fn a_speaker_that_gives_up_its_blocks_goes_on_where_it_was() {
    let mut world = World::new(6, 0);
    world.admit(0, prompt(100, 0), 150);
    world.admit(1, prompt(100, 1000), 150);
    world.run(512);
    assert_eq!(world.past(0).preempted, 0, "the oldest never gives up");
    assert!(world.past(1).preempted > 0);
}

#[test]
fn a_reader_that_gives_up_its_blocks_reads_again() {
    let mut world = World::new(8, 0);
    // Both start; the first, which speaks, needs the blocks of the second, which still reads: 2 tokens a step.
    world.admit(0, prompt(60, 0), 300);
    world.step(512);
    world.admit(1, prompt(380, 1000), 3);
    let reads = (0..130).map(|_| world.step(2).iter().any(|part| part.0 == 1)).collect::<Vec<_>>();
    let stopped = reads.iter().skip_while(|reads| !**reads).any(|reads| !reads);
    assert!(stopped, "it started and was stopped in the middle");
    assert!(world.ended.is_empty());
    world.run(64);
    assert_eq!((world.past(0).preempted, world.past(1).preempted), (0, 1));
}

#[test]
fn one_that_waits_again_can_be_cancelled_and_the_others_go_on() {
    let mut world = World::new(6, 0);
    world.admit(0, prompt(100, 0), 150);
    world.admit(1, prompt(100, 1000), 150);
    world.admit(2, prompt(10, 2000), 2);
    while world.step(512).len() > 1 || world.schedule.len() > 3 {}
    world.schedule.cancel(|who| who.name == 1);
    world.run(512);
    assert_eq!(world.ended.iter().map(|ended| ended.0).collect::<Vec<_>>(), [2, 0]);
}

#[test]
fn what_was_preempted_finds_most_of_its_text_again() {
    let mut world = World::new(9, 9);
    world.admit(0, prompt(200, 0), 130);
    world.admit(1, prompt(200, 1000), 130);
    world.run(512);
    let past = world.past(1);
    assert!(past.preempted > 0 && past.found >= BLOCK, "{past:?}");
}

#[test]
fn a_beginning_that_another_is_reading_is_read_once() {
    let mut world = World::new(100, 10);
    let prompt = prompt(640, 0);
    (0..8).for_each(|name| world.admit(name, [&prompt[..], &[7_000 + name]].concat(), 2));
    let mut tokens = 0;
    while !world.schedule.is_empty() {
        tokens += world.step(64).iter().map(|part| part.1).sum::<usize>();
    }
    // 8 last tokens of prompts, 8 said and read, the rest once; a step's readers are all planned before it runs.
    assert!(tokens < 640 + 3 * 64, "{tokens} tokens were run");
}

#[test]
fn cancelled_ones_leave_their_blocks_behind() {
    let mut world = World::new(6, 0);
    for round in 0..50 {
        world.admit(2 * round, prompt(250, 1000 * round), 9);
        world.admit(2 * round + 1, prompt(9, 1000 * round), 9);
        world.step(100);
        world.schedule.cancel(|who| who.name == 2 * round);
        world.run(100);
    }
    assert_eq!(world.ended.len(), 50);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn everybody_ends_and_sees_only_what_is_its_own(
        blocks in 2usize..12,
        idle in 0usize..6,
        budget in 1usize..200,
        looks_ahead in prop::bool::ANY,
        // Beginning (few, so that they meet), length, answers, the step it comes in; cancelled or not.
        asked in proptest::collection::vec((0u32..3, 1usize..300, 1u32..150, 0usize..60, prop::bool::weighted(0.1)), 1..12),
    ) {
        let mut world = World::new(blocks, idle);
        world.looks_ahead = looks_ahead;
        let most = world.schedule.most_positions();
        let mut coming: Vec<_> = asked.iter().enumerate().collect();
        coming.sort_by_key(|(_, asked)| asked.3);
        let mut coming = coming.into_iter().peekable();
        let (mut steps, mut expected) = (0, 0);
        while coming.peek().is_some() || !world.schedule.is_empty() {
            while let Some((name, &(from, length, answers, _, cancelled))) = coming.next_if(|(_, asked)| asked.3 <= steps) {
                let length = length.min(most - 1);
                // The same beginnings, and a few tokens of its own behind.
                let mut tokens = prompt(length, from);
                tokens.iter_mut().rev().take(length % 7).for_each(|token| *token += 10_000 * (name as u32 + 1));
                world.admit(name as u32, tokens, answers.min((most - length) as u32));
                expected += usize::from(!cancelled);
            }
            if !world.schedule.is_empty() {
                prop_assert!(!world.step(budget).is_empty(), "a step without anybody never ends");
            }
            steps += 1;
            for (name, asked) in asked.iter().enumerate() {
                if asked.4 && steps == asked.3 + 20 {
                    world.schedule.cancel(|who| who.name == name as u32);
                }
            }
            prop_assert!(steps < 20_000, "somebody never ends");
        }
        let cancelled = |name: u32| asked[name as usize].4;
        prop_assert_eq!(world.ended.iter().filter(|ended| !cancelled(ended.0)).count(), expected);
        let mut order = world.started.clone();
        order.sort_by_key(|&name| (asked[name as usize].3, name));
        prop_assert_eq!(&world.started, &order);
        // Nothing is lost: the whole cache can be had by one that needs it.
        world.admit(99, prompt(most - 1, 5_000_000), 1);
        world.run(512);
    }
}
