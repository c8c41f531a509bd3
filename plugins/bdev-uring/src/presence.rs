//! Whether a device's file is there, and what that means for the device. A file
//! is the same as long as it has the same device number and inode: another file
//! of the same name is another device.
//!
//! ```text
//!            a file             opened
//!  Waiting ─────────► Opening ─────────► Present ◄─same file── Absent ─┐
//!     ▲  ◄──failed──────┘                   │  └─────no file─────►     │ too long,
//!     │                                     │ other file               │ other file
//!     └─────gone, and the file is waited for──── Leaving ◄─────────────┘
//!                                                  └─gone──► Gone
//! ```
//!
//! Only decides; `files` looks at files and acts.

use tenon_sdk::Reason;

/// State of a device's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// There is no device; it is made when the file appears.
    Waiting,
    /// A worker opens the file.
    Opening,
    /// The device is in service.
    Present,
    /// The file is gone, I/O waits.
    Absent,
    /// The device is being removed because of its file.
    Leaving,
    /// Nothing is left.
    Gone,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The device's file is at its path.
    SameFile,
    /// Another file is there, or any, if there is no device.
    OtherFile,
    /// There is none.
    NoFile,
    /// The device is registered.
    Opened,
    /// It could not be.
    OpenFailed,
    /// The device is gone because somebody wanted that.
    Deleted,
    /// The device is gone because of its file.
    Lost,
}

/// What the operator wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// A file that is not there is waited for.
    pub waits: bool,
    /// A device outlives its file for a while.
    pub keeps: bool,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Open the file and register the device.
    Open,
    /// Let I/O wait.
    SetAbsent,
    /// Let I/O go on.
    SetPresent,
    /// Take the file's size.
    Resize,
    /// Remove the device.
    Remove(Reason),
}

impl Presence {
    /// The next state, and what is to be done on the way.
    pub fn next(self, event: Event, policy: Policy) -> (Presence, Action) {
        use {Action::*, Event::*, Presence::*};
        let without_device = if policy.waits { Waiting } else { Gone };
        match (self, event) {
            (Waiting, SameFile | OtherFile) => (Opening, Open),
            (Waiting, NoFile) => (Waiting, Nothing),
            (Opening, Opened) => (Present, Nothing),
            (Opening, OpenFailed) => (without_device, Nothing),
            // It is looked at again when it is open.
            (Opening, SameFile | OtherFile | NoFile) => (Opening, Nothing),
            (Present, SameFile) => (Present, Resize),
            (Present, NoFile) if policy.keeps => (Absent, SetAbsent),
            (Present, NoFile) => (Leaving, Remove(Reason::HOT_REMOVED)),
            (Absent, SameFile) => (Present, SetPresent),
            (Absent, NoFile) => (Absent, Nothing),
            (Present | Absent, OtherFile) => (Leaving, Remove(Reason::IDENTITY_CHANGED)),
            (Present | Absent, Deleted) => (Gone, Nothing),
            (Present | Absent | Leaving, Lost) | (Leaving, Deleted) => (without_device, Nothing),
            (Leaving, SameFile | OtherFile | NoFile) => (Leaving, Nothing),
            // A device is gone once, and opened once: what else is told is too late to matter.
            (Waiting, Opened | OpenFailed | Deleted | Lost)
            | (Opening, Deleted | Lost)
            | (Present | Absent | Leaving, Opened | OpenFailed)
            | (Gone, SameFile | OtherFile | NoFile | Opened | OpenFailed | Deleted | Lost) => (self, Nothing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use {Action::*, Event::*, Presence::*};

    const WAITS: Policy = Policy { waits: true, keeps: true };
    const NEITHER: Policy = Policy { waits: false, keeps: false };

    #[track_caller]
    fn check(policy: Policy, start: Presence, steps: &[(Event, Presence, Action)]) {
        let mut state = start;
        for (event, expected, action) in steps {
            assert_eq!(state.next(*event, policy), (*expected, *action), "{state:?} {event:?}");
            state = *expected;
        }
    }

    #[test]
    fn a_file_that_comes_goes_and_comes_again_is_the_same_device() {
        check(
            WAITS,
            Waiting,
            &[
                (NoFile, Waiting, Nothing),
                (OtherFile, Opening, Open),
                (Opened, Present, Nothing),
                (SameFile, Present, Resize),
                (NoFile, Absent, SetAbsent),
                (NoFile, Absent, Nothing),
                (SameFile, Present, SetPresent),
            ],
        );
    }

    #[test]
    fn another_file_is_another_device() {
        let removed = Remove(Reason::IDENTITY_CHANGED);
        check(
            WAITS,
            Present,
            &[(OtherFile, Leaving, removed), (Lost, Waiting, Nothing), (OtherFile, Opening, Open)],
        );
        check(
            NEITHER,
            Absent,
            &[(OtherFile, Leaving, removed), (Lost, Gone, Nothing), (OtherFile, Gone, Nothing)],
        );
    }

    #[test]
    fn a_device_that_is_not_kept_goes_at_once() {
        check(NEITHER, Present, &[(NoFile, Leaving, Remove(Reason::HOT_REMOVED)), (Lost, Gone, Nothing)]);
    }

    #[test]
    fn a_device_that_was_deleted_does_not_come_back() {
        check(WAITS, Present, &[(Deleted, Gone, Nothing)]);
        check(WAITS, Absent, &[(Deleted, Gone, Nothing)]);
        check(WAITS, Absent, &[(Lost, Waiting, Nothing)]);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_waited_for_again() {
        check(WAITS, Opening, &[(OpenFailed, Waiting, Nothing)]);
        check(NEITHER, Opening, &[(OpenFailed, Gone, Nothing)]);
    }
}
