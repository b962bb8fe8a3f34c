//! What must hold: at most one holder, each copy served as one sequence, nothing lost that need not be, nothing merged twice.
//!
//! Every key's state is a count and the name of its lineage. A copy that goes on at two places is two lineages from there on.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keydispatch_core::ServiceId;
use keydispatch_core::ownership::{Adoption, Holding, SlotSet};

use super::ledger::{Cell, decode, encode};
use super::machine::service_type;
use crate::world::World;

impl World {
    /// A call is run.
    pub(crate) fn count_up(&mut self, process: usize, id: &ServiceId, slot: u32, key: u8) {
        let holders = self.holders(slot).len();
        let large = self
            .tokens
            .as_ref()
            .is_some_and(|tokens| tokens.profile.large);
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        let (ledger, Some(machine)) = (&mut tokens.ledger, tokens.machines[process].as_mut())
        else {
            return;
        };
        ledger.double += u64::from(holders > 1);
        let cells = machine.states.entry((id.clone(), slot)).or_default();
        let cell = cells.entry(key).or_insert_with(|| Cell {
            lineage: ledger.begin(slot, key, 0),
            count: 0,
            merged: BTreeSet::new(),
            padding: Bytes::from(vec![
                0;
                if large {
                    40 * (1 + slot as usize % 12)
                } else {
                    0
                }
            ]),
        });
        cell.count += 1;
        let (lineage, count) = (cell.lineage, cell.count);
        let before = ledger.last.get(&lineage).map_or(0, |(count, _, _)| *count);
        ledger.last.insert(lineage, (count, slot, key));
        // I2: each copy is served as one sequence.
        if count != before + 1 {
            self.violate(format!(
                "{id} counts {count} for slot {slot}, lineage {lineage}, after {before}"
            ));
        }
    }

    /// The instances that hold the slot now.
    pub(crate) fn holders(&self, slot: u32) -> Vec<(usize, ServiceId)> {
        let Some(tokens) = self.tokens.as_ref() else {
            return Vec::new();
        };
        let mut holders = Vec::new();
        for (process, machine) in tokens.machines.iter().enumerate() {
            let Some(machine) = machine
                .as_ref()
                .filter(|_| self.processes[process].cluster.is_some())
            else {
                continue;
            };
            for id in &machine.instances {
                if machine.ownership.holding(&service_type(), id, slot) == Holding::Held {
                    holders.push((process, id.clone()));
                }
            }
        }
        holders
    }

    /// I1: at most one holds, where nobody was falsely taken for dead and no patience was used.
    pub(crate) fn check_holders(&mut self, slots: &SlotSet) {
        if self
            .tokens
            .as_ref()
            .is_none_or(|tokens| !tokens.ledger.is_healthy())
        {
            return;
        }
        for slot in slots.iter() {
            let holders = self.holders(slot);
            if holders.len() > 1 {
                let holders: Vec<String> = holders.iter().map(|(_, id)| id.to_string()).collect();
                return self.violate(format!("{} hold slot {slot}", holders.join(" and ")));
            }
        }
    }

    fn lineage_lives(&self, lineage: u64, but: Option<usize>) -> bool {
        let Some(tokens) = self.tokens.as_ref() else {
            return false;
        };
        let machines = tokens.machines.iter().enumerate();
        let mut others = machines.filter(|(process, _)| {
            Some(*process) != but && self.processes[*process].cluster.is_some()
        });
        others.any(|(_, machine)| {
            let mut cells = machine
                .iter()
                .flat_map(|machine| machine.states.values().flat_map(BTreeMap::values));
            cells.any(|cell| cell.lineage == lineage)
        })
    }

    /// I1: nothing is begun anew while a copy of it lives, where nobody has died.
    pub(crate) fn judge_mint(&mut self, id: &ServiceId, slots: &SlotSet) {
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        let ledger = &mut tokens.ledger;
        ledger.minted += slots.len() as u64;
        if !ledger.is_healthy() || ledger.nobody || ledger.crashed > 0 {
            return;
        }
        let merged: BTreeSet<u64> = self.merged();
        let Some(ledger) = self.tokens.as_ref().map(|tokens| &tokens.ledger) else {
            return;
        };
        let alive = ledger.last.iter().find(|(lineage, (count, slot, _))| {
            slots.contains(*slot)
                && *count > 0
                && !ledger.lost.contains(lineage)
                && !merged.contains(lineage)
        });
        if let Some((lineage, (_, slot, _))) = alive {
            let what = format!("{id} begins slot {slot} anew while lineage {lineage} lives");
            self.violate(what);
        }
    }

    fn merged(&self) -> BTreeSet<u64> {
        let machines = self
            .tokens
            .iter()
            .flat_map(|tokens| tokens.machines.iter().flatten());
        let cells = machines.flat_map(|machine| machine.states.values().flat_map(BTreeMap::values));
        cells.flat_map(|cell| cell.merged.iter().copied()).collect()
    }

    /// What is to be given.
    pub(crate) fn states_of(
        &self,
        process: usize,
        id: &ServiceId,
        slot: u32,
    ) -> Vec<(Bytes, Bytes)> {
        let machine = self
            .tokens
            .as_ref()
            .and_then(|tokens| tokens.machines[process].as_ref());
        let cells = machine.and_then(|machine| machine.states.get(&(id.clone(), slot)));
        cells.map(encode).unwrap_or_default()
    }

    /// A slot was adopted.
    pub(crate) fn adopted(
        &mut self,
        process: usize,
        (id, slot): (&ServiceId, u32),
        (from, transfer): (&ServiceId, u64),
        states: &[(Bytes, Bytes)],
        how: Adoption,
    ) {
        let mut came = decode(states);
        let key = (from.nonce, transfer);
        let giver = self.by_nonce.get(&from.nonce).copied();
        let giver = giver.filter(|giver| self.processes[*giver].cluster.is_some());
        let is_giving = giver.is_some_and(|giver| {
            let machine = self
                .tokens
                .as_ref()
                .and_then(|tokens| tokens.machines[giver].as_ref());
            machine
                .is_some_and(|machine| machine.giving.get(&(from.clone(), slot)) == Some(&transfer))
        });
        // It was taken back before it came: both go on, and are two lineages from here on.
        let live: Vec<bool> = came
            .values()
            .map(|cell| self.lineage_lives(cell.lineage, None))
            .collect();
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        let ledger = &mut tokens.ledger;
        ledger.adoptions += 1;
        ledger.adopted.insert(key, process);
        let forks = !is_giving && (giver.is_some() || ledger.taken_back.contains(&key));
        for ((name, cell), live) in came.iter_mut().zip(live) {
            if forks && live {
                ledger.forks += 1;
                cell.lineage = ledger.begin(slot, *name, cell.count);
            } else {
                ledger.lost.remove(&cell.lineage);
                let known = ledger
                    .last
                    .entry(cell.lineage)
                    .or_insert((cell.count, slot, *name));
                if !live {
                    known.0 = cell.count;
                }
            }
        }
        if how == Adoption::MergeIntoOurs && ledger.is_healthy() {
            self.violate(format!("{id} is given slot {slot} by {from} and holds it"));
            return;
        }
        let Some(machine) = tokens.machines[process].as_mut() else {
            return;
        };
        let ours = machine
            .states
            .remove(&(id.clone(), slot))
            .unwrap_or_default();
        if how == Adoption::Whole && !ours.is_empty() {
            let what = format!("{id} adopts slot {slot} as a whole and has states of it already");
            self.violate(what);
            return;
        }
        let (mut into, other) = match how {
            Adoption::MergeIntoOurs => (ours, came),
            _ => (came, ours),
        };
        let mut wrong = None;
        for (name, theirs) in other {
            let Some(mine) = into.get_mut(&name) else {
                into.insert(name, theirs);
                continue;
            };
            ledger.merges += 1;
            if mine.lineage == theirs.lineage {
                wrong = Some(format!(
                    "{id} merges lineage {} of slot {slot} with itself",
                    mine.lineage
                ));
            } else if mine.merged.contains(&theirs.lineage) {
                // Two generals: the word that it was merged was lost. What was merged travels along, so it is known.
                ledger.again += 1;
            }
            mine.merged.insert(theirs.lineage);
            mine.merged.extend(theirs.merged);
            let own = mine.lineage;
            mine.merged.remove(&own);
        }
        machine.states.insert((id.clone(), slot), into);
        if let Some(wrong) = wrong {
            self.violate(wrong);
        }
    }

    /// What was given was not adopted, as far as the giver knows.
    pub(crate) fn taken_back(&mut self, process: usize, id: &ServiceId, slot: u32, transfer: u64) {
        let key = (id.nonce, transfer);
        let lineages: Vec<(u8, u64)> = self
            .cells_of(process, id, slot)
            .map(|(key, cell)| (*key, cell.lineage))
            .collect();
        let elsewhere: Vec<bool> = lineages
            .iter()
            .map(|(_, lineage)| self.lineage_lives(*lineage, Some(process)))
            .collect();
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        let ledger = &mut tokens.ledger;
        ledger.taken_back.insert(key);
        if !ledger.adopted.contains_key(&key) {
            return;
        }
        let Some(cells) = tokens.machines[process]
            .as_mut()
            .and_then(|machine| machine.states.get_mut(&(id.clone(), slot)))
        else {
            return;
        };
        for ((name, cell), elsewhere) in cells.iter_mut().zip(elsewhere) {
            if elsewhere {
                ledger.forks += 1;
                cell.lineage = ledger.begin(slot, *name, cell.count);
            } else {
                ledger.lost.remove(&cell.lineage);
                ledger.last.insert(cell.lineage, (cell.count, slot, *name));
            }
        }
    }

    fn cells_of(
        &self,
        process: usize,
        id: &ServiceId,
        slot: u32,
    ) -> impl Iterator<Item = (&u8, &Cell)> {
        let machine = self
            .tokens
            .as_ref()
            .and_then(|tokens| tokens.machines[process].as_ref());
        let cells = machine.and_then(|machine| machine.states.get(&(id.clone(), slot)));
        cells.into_iter().flatten()
    }

    /// The states of a slot are dropped; `planned` says that somebody must have them.
    pub(crate) fn drop_states(&mut self, process: usize, id: &ServiceId, slot: u32, planned: bool) {
        let cells: Vec<(u64, u64)> = self
            .cells_of(process, id, slot)
            .map(|(_, cell)| (cell.lineage, cell.count))
            .collect();
        // What was merged into them goes with them, unless whoever has them now has it in them, too.
        let merged: Vec<u64> = self
            .cells_of(process, id, slot)
            .flat_map(|(_, cell)| cell.merged.iter().copied())
            .collect();
        if let Some(machine) = self.machine(process) {
            machine.states.remove(&(id.clone(), slot));
        }
        let elsewhere = if merged.is_empty() {
            BTreeSet::new()
        } else {
            self.merged()
        };
        for lineage in merged {
            let lives = elsewhere.contains(&lineage) || self.lineage_lives(lineage, None);
            if let Some(tokens) = self.tokens.as_mut().filter(|_| !lives) {
                tokens.ledger.lost.insert(lineage);
            }
        }
        for (lineage, count) in cells {
            if self.lineage_lives(lineage, None) {
                continue;
            }
            let Some(ledger) = self.tokens.as_mut().map(|tokens| &mut tokens.ledger) else {
                return;
            };
            ledger.lost.insert(lineage);
            if planned && count > 0 && ledger.is_healthy() && ledger.crashed == 0 && !ledger.nobody
            {
                self.violate(format!("{id} drops the only copy of slot {slot}"));
            }
        }
    }

    /// I5 and I8: it is quiet. Every slot is held by its first alone, and every copy that ever served is held, merged, or was
    /// lost with a process.
    pub(crate) fn check_rest(&self) -> Result<(), String> {
        let Some(tokens) = self.tokens.as_ref() else {
            return Ok(());
        };
        let mute = |process: usize| self.is_mute(process);
        let living: Vec<usize> = self
            .living()
            .into_iter()
            .filter(|process| !mute(*process))
            .collect();
        let machines: Vec<_> = living
            .iter()
            .filter_map(|process| tokens.machines[*process].as_ref())
            .collect();
        let Some(some) = machines.first() else {
            return Ok(());
        };
        for slot in 0..tokens.slots {
            let first = some.ownership.first(&service_type(), slot);
            for machine in &machines {
                let other = machine.ownership.first(&service_type(), slot);
                if other != first {
                    return Err(format!(
                        "the first for slot {slot} is {first:?} for one and {other:?} for another"
                    ));
                }
            }
            let Some(first) = first else {
                continue;
            };
            if self
                .by_nonce
                .get(&first.nonce)
                .is_some_and(|process| mute(*process))
            {
                continue;
            }
            let holders = self.holders(slot);
            let holders: Vec<_> = holders
                .into_iter()
                .filter(|(process, _)| !mute(*process))
                .collect();
            if holders.len() != 1 || holders[0].1 != *first {
                let unrest: Vec<String> = machines
                    .iter()
                    .filter_map(|machine| machine.ownership.unrest())
                    .collect();
                return Err(format!(
                    "in the end slot {slot} is held by {holders:?}, its first is {first}; {unrest:?}"
                ));
            }
        }
        if living.len() < self.living().len() {
            return Ok(());
        }
        for machine in &machines {
            if let Some(unrest) = machine
                .ownership
                .unrest()
                .filter(|_| some.ownership.first(&service_type(), 0).is_some())
            {
                return Err(format!("in the end {unrest}"));
            }
            if let Some(((id, slot), _)) =
                machine.parked.iter().find(|(_, parked)| !parked.is_empty())
            {
                return Err(format!("in the end calls wait for slot {slot} at {id}"));
            }
        }
        let ledger = &tokens.ledger;
        if !ledger.nobody {
            let merged = self.merged();
            for (lineage, (count, slot, key)) in &ledger.last {
                let known =
                    *count == 0 || ledger.lost.contains(lineage) || merged.contains(lineage);
                if !known && !self.lineage_lives(*lineage, None) {
                    return Err(format!(
                        "lineage {lineage} of slot {slot}, key {key}, vanished after {count} calls"
                    ));
                }
            }
        }
        Ok(())
    }
}
