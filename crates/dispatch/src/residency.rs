//! What fits on a device, and who leaves when it does not: pure decisions over sizes and times. Refuses to know channels,
//! workers and queues.
//!
//! The sum: what is free is the budget less what every model holds or was promised. Idle models that are not pinned leave
//! first, the least recently used first of all; then busy ones, when their predictions have ended. What pinned models hold
//! is never free.

use std::cmp::Reverse;

use tokio::time::Instant;

/// A model that holds memory of a device.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    pub target: &'a str,
    pub bytes: u64,
    /// Predictions inside.
    pub active: u32,
    pub pinned: bool,
    pub last_used: Instant,
}

/// What it takes to have so many bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// They are free; none: there is no bound.
    Now { free: Option<u64> },
    /// These idle ones have to leave; the one used last was used at `newest`.
    After { leave: Vec<String>, newest: Instant },
    /// `idle` can leave at once, and that is not enough: `busy` have so many predictions inside.
    Busy { idle: Vec<String>, busy: Vec<(String, u32)> },
}

/// How good a fit is, the best first: the most free memory, then the models that were missed the longest, then the fewest
/// predictions to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    Now(Reverse<u64>),
    After(Instant),
    Busy(u32),
}

impl Fit {
    pub fn rank(&self) -> Rank {
        match self {
            Self::Now { free } => Rank::Now(Reverse(free.unwrap_or(u64::MAX))),
            Self::After { newest, .. } => Rank::After(*newest),
            Self::Busy { busy, .. } => Rank::Busy(busy.iter().map(|(_, active)| active).sum()),
        }
    }
}

pub fn used(held: &[Held]) -> u64 {
    held.iter().map(|held| held.bytes).fold(0, u64::saturating_add)
}

/// The most that can ever be free: everything but what pinned models hold.
pub fn most(budget: u64, held: &[Held]) -> u64 {
    let pinned: Vec<Held> = held.iter().filter(|held| held.pinned).copied().collect();
    budget.saturating_sub(used(&pinned))
}

/// How to have `need` bytes beside what is held, or all that can ever be had if that is less: the size that is known may
/// be too large, and whether it fits is for the worker to say.
pub fn fit(need: u64, budget: Option<u64>, held: &[Held]) -> Fit {
    let Some(budget) = budget else { return Fit::Now { free: None } };
    let need = need.min(most(budget, held));
    let mut left = used(held);
    let free = |left: u64| budget.saturating_sub(left);
    if free(left) >= need {
        return Fit::Now { free: Some(free(left)) };
    }
    let mut movable: Vec<&Held> = held.iter().filter(|held| !held.pinned).collect();
    movable.sort_by_key(|held| (held.active > 0, held.last_used));
    let (mut idle, mut busy, mut newest) = (Vec::new(), Vec::new(), None);
    for held in movable {
        if free(left) >= need {
            break;
        }
        left = left.saturating_sub(held.bytes);
        if held.active > 0 {
            busy.push((held.target.to_owned(), held.active));
        } else {
            idle.push(held.target.to_owned());
            newest = Some(held.last_used);
        }
    }
    match newest {
        Some(newest) if busy.is_empty() => Fit::After { leave: idle, newest },
        _ => Fit::Busy { idle, busy },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn idle(target: &str, bytes: u64, last_used: Instant) -> Held<'_> {
        Held { target, bytes, active: 0, pinned: false, last_used }
    }

    fn busy(target: &str, bytes: u64, last_used: Instant) -> Held<'_> {
        Held { active: 2, ..idle(target, bytes, last_used) }
    }

    fn pinned(target: &str, bytes: u64, last_used: Instant) -> Held<'_> {
        Held { pinned: true, ..idle(target, bytes, last_used) }
    }

    #[test]
    fn who_leaves_is_idle_unpinned_and_the_longest_unused() {
        let then = Instant::now();
        let at = |second| then + Duration::from_secs(second);
        let (a, b, c) = (idle("a", 3, at(2)), idle("b", 3, at(1)), idle("c", 3, at(3)));
        let after = |leave: &[&str], second| Fit::After {
            leave: leave.iter().map(|&name| name.to_owned()).collect(),
            newest: at(second),
        };
        let waits = |idle: &[&str], busy: &[&str]| Fit::Busy {
            idle: idle.iter().map(|&name| name.to_owned()).collect(),
            busy: busy.iter().map(|&name| (name.to_owned(), 2)).collect(),
        };
        let now = |free| Fit::Now { free: Some(free) };
        let table = [
            ("an empty device", 4, vec![], now(10)),
            ("beside others", 4, vec![a, b], now(4)),
            ("a size that nobody knows is tried in what is free", 0, vec![a, b, c], now(1)),
            ("the least recently used leaves", 4, vec![a, b, c], after(&["b"], 1)),
            ("as many as it takes, no more", 5, vec![a, b, c], after(&["b", "a"], 2)),
            ("a busy one stays while idle ones are enough", 4, vec![busy("b", 3, at(1)), a, c], after(&["a"], 2)),
            ("a pinned one stays", 4, vec![pinned("b", 3, at(1)), a, c], after(&["a"], 2)),
            ("a busy one is waited for", 8, vec![busy("b", 6, at(1)), a], waits(&["a"], &["b"])),
            ("only busy ones", 8, vec![busy("b", 6, at(1))], waits(&[], &["b"])),
            ("more than there can be asks for all that can be", 99, vec![pinned("p", 2, at(1)), a], after(&["a"], 2)),
            ("what a pinned one holds is not waited for", 99, vec![pinned("p", 9, at(1))], now(1)),
            ("one that took more than it said", 1, vec![idle("a", 12, at(1))], after(&["a"], 1)),
        ];
        for (what, need, held, expected) in table {
            assert_eq!(fit(need, Some(10), &held), expected, "{what}");
        }
        assert_eq!(fit(99, None, &[a]), Fit::Now { free: None }, "no bound");
        assert_eq!(most(10, &[a, pinned("p", 4, at(1))]), 6);
    }

    #[test]
    fn the_best_place_is_the_emptiest_then_the_one_whose_models_are_missed_least() {
        let then = Instant::now();
        let after = |seconds| Fit::After { leave: vec!["x".into()], newest: then + Duration::from_secs(seconds) };
        let waits = |active| Fit::Busy { idle: vec![], busy: vec![("x".into(), active)] };
        let best_first = [
            Fit::Now { free: None },
            Fit::Now { free: Some(9) },
            Fit::Now { free: Some(4) },
            after(1),
            after(2),
            waits(1),
            waits(3),
        ];
        assert!(best_first.is_sorted_by_key(Fit::rank));
    }
}
