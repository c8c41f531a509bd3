//! What reservations of one namespace are, and what each command makes of them.
//!
//! Pure: a command is applied to a state and gives the next one, with who is
//! told of it and whose commands are to end. Nothing here knows controllers,
//! files or reactors; [`Reservations::view`] is what reactors get.
//!
//! ```text
//!              Register                    Acquire
//! unregistered ────────► registrant ─────────────────────► holder
//!       ▲                 │    ▲          Release            │
//!       │   Unregister    │    └─────────────────────────────┤
//!       └─────────────────┴── Clear, or preempted by another ┘
//! ```
//!
//! With an All Registrants type every registrant is a holder.

use std::collections::BTreeMap;
use std::sync::Arc;

use nvme_spec::command::Sqe;
use nvme_spec::log::ReservationNotificationType as Notice;
use nvme_spec::opcode::IoOpcode;
use nvme_spec::reservation::{
    AcquireAction, AcquireData, ChangePtpl, RegisterAction, RegisterData, ReleaseAction, ReleaseData,
    ReservationAcquire, ReservationControl, ReservationRegister, ReservationRelease, ReservationType,
};
use nvme_spec::status::StatusCode;
use zerocopy::FromBytes;

/// Identifies a host: its 128-bit Host Identifier.
pub(crate) type Host = [u8; 16];

/// The reservations of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reservations {
    /// Counts registrations, preemptions and clears.
    pub generation: u32,
    /// Keys by host.
    pub registrants: BTreeMap<Host, u64>,
    pub held: Option<Held>,
    /// Persist Through Power Loss.
    pub is_persistent: bool,
}

/// A reservation that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub rtype: ReservationType,
    /// `None`: every registrant holds it.
    pub by: Option<Host>,
}

/// A reservation command that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Register {
        key: u64,
        persist: Option<bool>,
    },
    Unregister {
        key: Option<u64>,
        persist: Option<bool>,
    },
    Replace {
        key: Option<u64>,
        new_key: u64,
        persist: Option<bool>,
    },
    Acquire {
        key: u64,
        rtype: ReservationType,
    },
    Preempt {
        key: u64,
        victim_key: u64,
        rtype: ReservationType,
        aborts: bool,
    },
    Release {
        key: u64,
        rtype: ReservationType,
    },
    Clear {
        key: u64,
    },
    /// Feature 83h.
    Persist(bool),
}

/// What a command makes of the reservations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub next: Reservations,
    /// Hosts that are told, and what.
    pub notices: Vec<(Host, Notice)>,
    /// Hosts whose commands are to be aborted.
    pub aborted: Vec<Host>,
}

/// What a command does to the namespace, as far as reservations care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
}

/// A held reservation as reactors see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReservationView {
    rtype: ReservationType,
    holder: Option<Host>,
    registrants: Vec<Host>,
}

impl ReservationView {
    /// Whether a host may use the namespace.
    pub(crate) fn allows(&self, host: &Host, wanted: Use) -> bool {
        if self.holder.as_ref() == Some(host) {
            return true;
        }
        if wanted == Use::Read && !self.rtype.is_exclusive_access() {
            return true;
        }
        let lets_registrants = self.rtype.is_registrants_only() || self.rtype.is_all_registrants();
        lets_registrants && self.registrants.binary_search(host).is_ok()
    }
}

impl Request {
    /// The request in a command and its data.
    pub(crate) fn parse(sqe: &Sqe, data: &[u8]) -> Result<Self, StatusCode> {
        match IoOpcode(sqe.opc) {
            IoOpcode::RESERVATION_REGISTER => Self::parse_register(sqe.view(), data),
            IoOpcode::RESERVATION_ACQUIRE => Self::parse_acquire(sqe.view(), data),
            IoOpcode::RESERVATION_RELEASE => Self::parse_release(sqe.view(), data),
            _ => Err(StatusCode::INVALID_OPCODE),
        }
    }

    fn parse_register(command: &ReservationRegister, data: &[u8]) -> Result<Self, StatusCode> {
        let data = RegisterData::read_from_bytes(data).map_err(|_| StatusCode::DATA_SGL_LENGTH_INVALID)?;
        let persist = match command.change_ptpl() {
            ChangePtpl::NO_CHANGE => None,
            ChangePtpl::CLEAR => Some(false),
            ChangePtpl::PERSIST => Some(true),
            _ => return Err(StatusCode::INVALID_FIELD),
        };
        let ignores_key = command.control.contains(ReservationControl::IGNORE_EXISTING_KEY);
        let key = (!ignores_key).then_some(data.crkey.get());
        let new_key = data.nrkey.get();
        match command.rrega() {
            RegisterAction::UNREGISTER => Ok(Self::Unregister { key, persist }),
            // A key of zero means no key wherever keys are compared.
            RegisterAction::REGISTER | RegisterAction::REPLACE if new_key == 0 => {
                Err(StatusCode::INVALID_FIELD)
            }
            RegisterAction::REGISTER => Ok(Self::Register { key: new_key, persist }),
            RegisterAction::REPLACE => Ok(Self::Replace { key, new_key, persist }),
            _ => Err(StatusCode::INVALID_FIELD),
        }
    }

    fn parse_acquire(command: &ReservationAcquire, data: &[u8]) -> Result<Self, StatusCode> {
        let data = AcquireData::read_from_bytes(data).map_err(|_| StatusCode::DATA_SGL_LENGTH_INVALID)?;
        let rtype = checked(command.control, command.rtype)?;
        let (key, victim_key) = (data.crkey.get(), data.prkey.get());
        match command.racqa() {
            AcquireAction::ACQUIRE => Ok(Self::Acquire { key, rtype }),
            AcquireAction::PREEMPT => Ok(Self::Preempt { key, victim_key, rtype, aborts: false }),
            AcquireAction::PREEMPT_AND_ABORT => Ok(Self::Preempt { key, victim_key, rtype, aborts: true }),
            _ => Err(StatusCode::INVALID_FIELD),
        }
    }

    fn parse_release(command: &ReservationRelease, data: &[u8]) -> Result<Self, StatusCode> {
        let data = ReleaseData::read_from_bytes(data).map_err(|_| StatusCode::DATA_SGL_LENGTH_INVALID)?;
        let key = data.crkey.get();
        match command.rrela() {
            ReleaseAction::RELEASE => {
                Ok(Self::Release { key, rtype: checked(command.control, command.rtype)? })
            }
            ReleaseAction::CLEAR if command.control.contains(ReservationControl::IGNORE_EXISTING_KEY) => {
                Err(StatusCode::INVALID_FIELD)
            }
            ReleaseAction::CLEAR => Ok(Self::Clear { key }),
            _ => Err(StatusCode::INVALID_FIELD),
        }
    }

    /// Whether the request wants the state to survive the process.
    pub(crate) fn wants_persistence(&self) -> bool {
        matches!(
            self,
            Self::Register { persist: Some(true), .. }
                | Self::Unregister { persist: Some(true), .. }
                | Self::Replace { persist: Some(true), .. }
                | Self::Persist(true)
        )
    }
}

/// A known type, in a command that does not ask to ignore keys: since revision 1.3 only Register may.
fn checked(control: ReservationControl, rtype: ReservationType) -> Result<ReservationType, StatusCode> {
    let is_known = (1..=6).contains(&rtype.0);
    if !is_known || control.contains(ReservationControl::IGNORE_EXISTING_KEY) {
        return Err(StatusCode::INVALID_FIELD);
    }
    Ok(rtype)
}

impl Reservations {
    /// What reactors check commands against; `None` if nothing is reserved.
    pub(crate) fn view(&self) -> Option<Arc<ReservationView>> {
        let held = self.held?;
        let registrants = self.registrants.keys().copied().collect();
        Some(Arc::new(ReservationView { rtype: held.rtype, holder: held.by, registrants }))
    }

    pub(crate) fn is_registrant(&self, host: &Host) -> bool {
        self.registrants.contains_key(host)
    }

    pub(crate) fn is_holder(&self, host: &Host) -> bool {
        match self.held {
            Some(Held { by: Some(by), .. }) => by == *host,
            Some(Held { by: None, .. }) => self.is_registrant(host),
            None => false,
        }
    }

    /// What `request` of `host` makes of this.
    pub(crate) fn apply(&self, host: Host, request: &Request) -> Result<Outcome, StatusCode> {
        let mut next = self.clone();
        let mut outcome = match *request {
            Request::Register { key, persist } => next.register(host, key, persist)?,
            Request::Unregister { key, persist } => next.unregister(host, key, persist)?,
            Request::Replace { key, new_key, persist } => next.replace(host, key, new_key, persist)?,
            Request::Acquire { key, rtype } => next.acquire(host, key, rtype)?,
            Request::Preempt { key, victim_key, rtype, aborts } => {
                let mut effects = next.preempt(host, key, victim_key, rtype)?;
                if !aborts {
                    effects.aborted.clear();
                }
                effects
            }
            Request::Release { key, rtype } => next.release(host, key, rtype)?,
            Request::Clear { key } => next.clear(host, key)?,
            Request::Persist(is_persistent) => {
                next.is_persistent = is_persistent;
                Effects::default()
            }
        };
        // The host that asked knows, whatever it was.
        outcome.notices.retain(|(told, _)| *told != host);
        Ok(Outcome { next, notices: outcome.notices, aborted: outcome.aborted })
    }

    fn register(&mut self, host: Host, key: u64, persist: Option<bool>) -> Result<Effects, StatusCode> {
        match self.registrants.get(&host) {
            Some(existing) if *existing != key => return Err(StatusCode::RESERVATION_CONFLICT),
            Some(_) => {}
            None => self.add(host, key)?,
        }
        self.registered(persist);
        Ok(Effects::default())
    }

    fn replace(
        &mut self,
        host: Host,
        key: Option<u64>,
        new_key: u64,
        persist: Option<bool>,
    ) -> Result<Effects, StatusCode> {
        match (key, self.registrants.get(&host)) {
            (Some(key), Some(existing)) if *existing == key => {}
            (Some(_), _) => return Err(StatusCode::RESERVATION_CONFLICT),
            (None, _) => {}
        }
        self.add(host, new_key)?;
        self.registered(persist);
        Ok(Effects::default())
    }

    fn unregister(
        &mut self,
        host: Host,
        key: Option<u64>,
        persist: Option<bool>,
    ) -> Result<Effects, StatusCode> {
        match (key, self.registrants.get(&host)) {
            (_, None) => return Err(StatusCode::RESERVATION_CONFLICT),
            (Some(key), Some(existing)) if *existing != key => return Err(StatusCode::RESERVATION_CONFLICT),
            (_, Some(_)) => {}
        }
        let before = self.held;
        self.remove(&host);
        let mut effects = Effects::default();
        // With the holder gone, those who shared the access hear that they have to arrange themselves.
        if let Some(held) = before.filter(|_| self.held.is_none())
            && held.rtype.is_registrants_only()
        {
            self.tell_all(&mut effects, Notice::RESERVATION_RELEASED);
        }
        self.registered(persist);
        Ok(effects)
    }

    fn acquire(&mut self, host: Host, key: u64, rtype: ReservationType) -> Result<Effects, StatusCode> {
        self.check_key(&host, key)?;
        match self.held {
            Some(held) if self.is_holder(&host) && held.rtype == rtype => {}
            Some(_) => return Err(StatusCode::RESERVATION_CONFLICT),
            None => self.hold(host, rtype),
        }
        Ok(Effects::default())
    }

    fn preempt(
        &mut self,
        host: Host,
        key: u64,
        victim_key: u64,
        rtype: ReservationType,
    ) -> Result<Effects, StatusCode> {
        self.check_key(&host, key)?;
        let victims: Vec<Host> = match self.held {
            Some(Held { by: None, .. }) if victim_key == 0 => {
                self.registrants.keys().copied().filter(|other| *other != host).collect()
            }
            _ if victim_key == 0 => return Err(StatusCode::INVALID_FIELD),
            _ => {
                let with_key = self.registrants.iter().filter(|(_, key)| **key == victim_key);
                with_key.map(|(other, _)| *other).collect()
            }
        };
        let replaces = match self.held {
            Some(Held { by: None, .. }) => victim_key == 0,
            Some(Held { by: Some(by), .. }) => self.registrants.get(&by) == Some(&victim_key),
            None => false,
        };
        if victims.is_empty() && !replaces {
            return Err(StatusCode::RESERVATION_CONFLICT);
        }
        let mut effects = Effects::default();
        let before = self.held;
        for victim in victims {
            // Who takes the reservation over stays registered, also with the key it names.
            if replaces && victim == host {
                continue;
            }
            self.remove(&victim);
            effects.notices.push((victim, Notice::REGISTRATION_PREEMPTED));
            if victim != host {
                effects.aborted.push(victim);
            }
        }
        if replaces {
            self.hold(host, rtype);
        }
        // Whoever stays registered hears that the terms have changed.
        if before.is_some() && self.held.map(|held| held.rtype) != before.map(|held| held.rtype) {
            self.tell_all(&mut effects, Notice::RESERVATION_RELEASED);
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(effects)
    }

    fn release(&mut self, host: Host, key: u64, rtype: ReservationType) -> Result<Effects, StatusCode> {
        self.check_key(&host, key)?;
        let mut effects = Effects::default();
        let Some(held) = self.held.filter(|_| self.is_holder(&host)) else { return Ok(effects) };
        if held.rtype != rtype {
            return Err(StatusCode::INVALID_FIELD);
        }
        self.held = None;
        if rtype.is_registrants_only() || rtype.is_all_registrants() {
            self.tell_all(&mut effects, Notice::RESERVATION_RELEASED);
        }
        Ok(effects)
    }

    fn clear(&mut self, host: Host, key: u64) -> Result<Effects, StatusCode> {
        self.check_key(&host, key)?;
        let mut effects = Effects::default();
        self.tell_all(&mut effects, Notice::RESERVATION_PREEMPTED);
        self.registrants.clear();
        self.held = None;
        self.generation = self.generation.wrapping_add(1);
        Ok(effects)
    }

    fn check_key(&self, host: &Host, key: u64) -> Result<(), StatusCode> {
        if self.registrants.get(host) == Some(&key) { Ok(()) } else { Err(StatusCode::RESERVATION_CONFLICT) }
    }

    fn add(&mut self, host: Host, key: u64) -> Result<(), StatusCode> {
        if self.registrants.len() >= MAX_REGISTRANTS && !self.is_registrant(&host) {
            return Err(StatusCode::INTERNAL_ERROR);
        }
        self.registrants.insert(host, key);
        Ok(())
    }

    /// Takes a registration away, and the reservation with its last holder.
    fn remove(&mut self, host: &Host) {
        self.registrants.remove(host);
        let is_over = match self.held {
            Some(Held { by: Some(by), .. }) => by == *host,
            Some(Held { by: None, .. }) => self.registrants.is_empty(),
            None => false,
        };
        if is_over {
            self.held = None;
        }
    }

    fn hold(&mut self, host: Host, rtype: ReservationType) {
        self.held = Some(Held { rtype, by: (!rtype.is_all_registrants()).then_some(host) });
    }

    fn registered(&mut self, persist: Option<bool>) {
        self.generation = self.generation.wrapping_add(1);
        self.is_persistent = persist.unwrap_or(self.is_persistent);
    }

    fn tell_all(&self, effects: &mut Effects, notice: Notice) {
        effects.notices.extend(self.registrants.keys().map(|host| (*host, notice)));
    }
}

/// What a command does beside changing the state.
#[derive(Default)]
struct Effects {
    notices: Vec<(Host, Notice)>,
    aborted: Vec<Host>,
}

/// Most registrants of a namespace.
pub(crate) const MAX_REGISTRANTS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const A: Host = [1; 16];
    const B: Host = [2; 16];
    const C: Host = [3; 16];
    const TYPES: [ReservationType; 6] = [
        ReservationType::WRITE_EXCLUSIVE,
        ReservationType::EXCLUSIVE_ACCESS,
        ReservationType::WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
        ReservationType::EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
        ReservationType::WRITE_EXCLUSIVE_ALL_REGISTRANTS,
        ReservationType::EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
    ];

    /// A and B registered with keys 1 and 2, A holding `rtype`.
    fn held(rtype: ReservationType) -> Reservations {
        let state = done(&Reservations::default(), A, Request::Register { key: 1, persist: None });
        let state = done(&state, B, Request::Register { key: 2, persist: None });
        done(&state, A, Request::Acquire { key: 1, rtype })
    }

    #[track_caller]
    fn done(state: &Reservations, host: Host, request: Request) -> Reservations {
        state.apply(host, &request).expect("it succeeds").next
    }

    #[track_caller]
    fn refused(state: &Reservations, host: Host, request: Request, code: StatusCode) {
        assert_eq!(state.apply(host, &request).map(|outcome| outcome.next), Err(code));
    }

    const CONFLICT: StatusCode = StatusCode::RESERVATION_CONFLICT;

    /// Who may read and write: holder, other registrant, stranger.
    #[track_caller]
    fn allowed(rtype: ReservationType, expected: [(bool, bool); 3]) {
        let view = held(rtype).view().expect("reserved");
        for (host, expected) in [A, B, C].iter().zip(expected) {
            let found = (view.allows(host, Use::Read), view.allows(host, Use::Write));
            assert_eq!(found, expected, "{rtype} {host:?}");
        }
    }

    #[test]
    fn each_type_lets_in_whom_it_says() {
        let (all, read, none) = ((true, true), (true, false), (false, false));
        allowed(ReservationType::WRITE_EXCLUSIVE, [all, read, read]);
        allowed(ReservationType::EXCLUSIVE_ACCESS, [all, none, none]);
        allowed(ReservationType::WRITE_EXCLUSIVE_REGISTRANTS_ONLY, [all, all, read]);
        allowed(ReservationType::EXCLUSIVE_ACCESS_REGISTRANTS_ONLY, [all, all, none]);
        allowed(ReservationType::WRITE_EXCLUSIVE_ALL_REGISTRANTS, [all, all, read]);
        allowed(ReservationType::EXCLUSIVE_ACCESS_ALL_REGISTRANTS, [all, all, none]);
    }

    #[test]
    fn a_key_is_registered_once_and_replaced_by_its_owner() {
        let state = done(&Reservations::default(), A, Request::Register { key: 1, persist: None });
        let again = done(&state, A, Request::Register { key: 1, persist: None });
        assert_eq!((again.registrants.len(), again.generation), (1, 2));
        refused(&state, A, Request::Register { key: 9, persist: None }, CONFLICT);
        refused(&state, A, Request::Replace { key: Some(8), new_key: 9, persist: None }, CONFLICT);
        refused(&state, B, Request::Replace { key: Some(1), new_key: 9, persist: None }, CONFLICT);
        let replaced = done(&state, A, Request::Replace { key: Some(1), new_key: 9, persist: None });
        assert_eq!(replaced.registrants[&A], 9);
        let forced = done(&replaced, B, Request::Replace { key: None, new_key: 5, persist: Some(true) });
        assert!(forced.is_persistent && forced.is_registrant(&B));
    }

    #[test]
    fn only_registrants_with_their_key_acquire() {
        let state = done(&Reservations::default(), A, Request::Register { key: 1, persist: None });
        for rtype in TYPES {
            refused(&state, B, Request::Acquire { key: 1, rtype }, CONFLICT);
            refused(&state, A, Request::Acquire { key: 2, rtype }, CONFLICT);
            let state = done(&state, A, Request::Acquire { key: 1, rtype });
            assert_eq!(done(&state, A, Request::Acquire { key: 1, rtype }), state, "again changes nothing");
            for other in TYPES.into_iter().filter(|other| *other != rtype) {
                refused(&state, A, Request::Acquire { key: 1, rtype: other }, CONFLICT);
            }
        }
    }

    #[test]
    fn a_second_registrant_is_a_holder_only_of_all_registrants_types() {
        for rtype in TYPES {
            let result = held(rtype).apply(B, &Request::Acquire { key: 2, rtype });
            assert_eq!(result.is_ok(), rtype.is_all_registrants(), "{rtype}");
        }
    }

    #[test]
    fn release_is_told_to_those_who_shared_the_access() {
        for rtype in TYPES {
            let state = held(rtype);
            let outcome = state.apply(A, &Request::Release { key: 1, rtype }).expect("released");
            assert_eq!(outcome.next.held, None);
            let shares = rtype.is_registrants_only() || rtype.is_all_registrants();
            let told = if shares { vec![(B, Notice::RESERVATION_RELEASED)] } else { vec![] };
            assert_eq!(outcome.notices, told, "{rtype}");
            let wrong = TYPES.into_iter().find(|other| *other != rtype).expect("six types");
            refused(&state, A, Request::Release { key: 1, rtype: wrong }, StatusCode::INVALID_FIELD);
            refused(&state, C, Request::Release { key: 1, rtype }, CONFLICT);
        }
        let rtype = ReservationType::WRITE_EXCLUSIVE;
        let state = held(rtype);
        assert_eq!(done(&state, B, Request::Release { key: 2, rtype }), state, "not B's to release");
    }

    #[test]
    fn the_last_holder_takes_the_reservation_along() {
        for rtype in TYPES {
            let outcome = held(rtype).apply(A, &Request::Unregister { key: Some(1), persist: None });
            let outcome = outcome.expect("unregistered");
            assert_eq!(outcome.next.held.is_some(), rtype.is_all_registrants(), "{rtype}");
            assert_eq!(!outcome.notices.is_empty(), rtype.is_registrants_only(), "{rtype}");
            let last = done(&outcome.next, B, Request::Unregister { key: None, persist: None });
            assert_eq!((last.held, last.registrants.len()), (None, 0));
        }
        let state = held(ReservationType::WRITE_EXCLUSIVE);
        refused(&state, A, Request::Unregister { key: Some(2), persist: None }, CONFLICT);
        refused(&state, C, Request::Unregister { key: None, persist: None }, CONFLICT);
    }

    #[test]
    fn preempting_the_holder_takes_its_place() {
        for old in TYPES.into_iter().filter(|rtype| !rtype.is_all_registrants()) {
            for rtype in TYPES {
                let request = Request::Preempt { key: 2, victim_key: 1, rtype, aborts: true };
                let outcome = held(old).apply(B, &request).expect("preempted");
                assert!(outcome.next.is_holder(&B) && !outcome.next.is_registrant(&A));
                assert_eq!(outcome.next.held.map(|held| held.rtype), Some(rtype));
                assert_eq!(outcome.notices, [(A, Notice::REGISTRATION_PREEMPTED)]);
                assert_eq!(outcome.aborted, [A]);
                assert_eq!(outcome.next.generation, 3);
            }
        }
    }

    #[test]
    fn preempting_another_registrant_leaves_the_reservation() {
        let rtype = ReservationType::EXCLUSIVE_ACCESS;
        let state = done(&held(rtype), C, Request::Register { key: 3, persist: None });
        let preempt = |victim_key| Request::Preempt { key: 2, victim_key, rtype, aborts: false };
        let outcome = state.apply(B, &preempt(3)).expect("preempted");
        assert!(outcome.next.is_holder(&A) && !outcome.next.is_registrant(&C));
        assert!(outcome.aborted.is_empty(), "it did not ask for that");
        refused(&state, B, preempt(77), CONFLICT);
        refused(&state, B, preempt(0), StatusCode::INVALID_FIELD);
        refused(&state, C, preempt(1), CONFLICT);
    }

    #[test]
    fn with_all_registrants_key_zero_preempts_everybody_else() {
        let old = ReservationType::WRITE_EXCLUSIVE_ALL_REGISTRANTS;
        let rtype = ReservationType::EXCLUSIVE_ACCESS;
        let state = held(old);
        let outcome = state.apply(B, &Request::Preempt { key: 2, victim_key: 0, rtype, aborts: true });
        let outcome = outcome.expect("preempted");
        assert_eq!(outcome.next.held, Some(Held { rtype, by: Some(B) }));
        assert_eq!((outcome.next.registrants.len(), outcome.aborted), (1, vec![A]));
        let one = state.apply(B, &Request::Preempt { key: 2, victim_key: 1, rtype, aborts: false });
        assert_eq!(one.expect("preempted").next.held, Some(Held { rtype: old, by: None }));
    }

    #[test]
    fn a_holder_may_preempt_itself_to_change_the_type() {
        let rtype = ReservationType::EXCLUSIVE_ACCESS_REGISTRANTS_ONLY;
        let state = held(ReservationType::WRITE_EXCLUSIVE_REGISTRANTS_ONLY);
        let outcome = state.apply(A, &Request::Preempt { key: 1, victim_key: 1, rtype, aborts: false });
        let outcome = outcome.expect("preempted");
        assert_eq!(outcome.next.held, Some(Held { rtype, by: Some(A) }));
        assert_eq!(outcome.notices, [(B, Notice::RESERVATION_RELEASED)]);
    }

    #[test]
    fn clear_ends_everything_and_tells_everybody() {
        for rtype in TYPES {
            let outcome = held(rtype).apply(B, &Request::Clear { key: 2 }).expect("cleared");
            assert_eq!((outcome.next.held, outcome.next.registrants.len()), (None, 0));
            assert_eq!(outcome.notices, [(A, Notice::RESERVATION_PREEMPTED)]);
        }
        refused(&held(TYPES[0]), C, Request::Clear { key: 2 }, CONFLICT);
    }

    #[test]
    fn registrants_are_bounded() {
        let mut state = Reservations::default();
        for number in 0..MAX_REGISTRANTS as u128 {
            state = done(&state, (number + 1).to_be_bytes(), Request::Register { key: 1, persist: None });
        }
        refused(&state, [0xff; 16], Request::Register { key: 1, persist: None }, StatusCode::INTERNAL_ERROR);
    }

    #[test]
    fn whatever_hosts_ask_the_state_stays_whole() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut chance = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 8) % below
        };
        let mut state = Reservations::default();
        for _ in 0..100_000 {
            let host = [A, B, C][chance(3) as usize];
            let mut sqe: Sqe = crate::queue::command::zeroed();
            sqe.opc = [0x0d, 0x11, 0x15, 0x0e][chance(4) as usize];
            sqe.cdw10.set((chance(9) << 8 | chance(16) | chance(4) << 30) as u32);
            let data: Vec<u8> = [chance(4), chance(4)].iter().flat_map(|key| key.to_le_bytes()).collect();
            let data = &data[..[8, 16, 16][chance(3) as usize]];
            let Ok(request) = Request::parse(&sqe, data) else { continue };
            let Ok(outcome) = state.apply(host, &request) else { continue };
            let next = outcome.next;
            let is_whole = match next.held {
                None => true,
                Some(Held { rtype, by: Some(by) }) => {
                    !rtype.is_all_registrants() && next.is_registrant(&by) && (1..=6).contains(&rtype.0)
                }
                Some(Held { rtype, by: None }) => rtype.is_all_registrants() && !next.registrants.is_empty(),
            };
            assert!(is_whole, "{request:?} made {next:?}");
            assert!(outcome.notices.iter().all(|(told, _)| *told != host && state.is_registrant(told)));
            assert!(outcome.aborted.iter().all(|other| !next.is_registrant(other)), "{request:?}");
            assert!(next.registrants.values().all(|key| *key != 0));
            state = next;
        }
    }
}
