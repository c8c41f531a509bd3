//! The checks: what every transport has to do, whatever it is made of.

use tenon_abi::errno;
use tenon_abi::transport::CloseReason;
use tenon_abi::transport::initiator::ConnectionEventKind;

use super::Rig;
use super::peer::{ENTRIES, Peer, pattern, round_trip};
use super::target::{self, HOLD, LATE_WRITE, NOTHING, READ};

/// A check.
type Check = fn(&mut Rig);

/// Every check, by name.
pub(super) const ALL: [(&str, Check); 12] = [
    ("commands_are_answered_once", commands_are_answered_once),
    ("payloads_arrive_whole", payloads_arrive_whole),
    ("payloads_wait_for_buffers", payloads_wait_for_buffers),
    ("a_full_queue_refuses_and_goes_on", a_full_queue_refuses_and_goes_on),
    ("a_disconnect_returns_everything", a_disconnect_returns_everything),
    ("a_close_of_the_target_returns_everything", a_close_of_the_target_returns_everything),
    ("nobody_listening_is_an_end", nobody_listening_is_an_end),
    ("a_silent_target_is_given_up", a_silent_target_is_given_up),
    ("a_disconnect_in_any_state_ends", a_disconnect_in_any_state_ends),
    ("connections_do_not_disturb_each_other", connections_do_not_disturb_each_other),
    ("a_stopped_listener_keeps_its_connections", a_stopped_listener_keeps_its_connections),
    ("options_and_statistics_are_objects", options_and_statistics_are_objects),
];

fn commands_are_answered_once(rig: &mut Rig) {
    let peer = Peer::connect(rig, 0).opened(rig);
    for round in 0..8 {
        let batch: Vec<_> = (0..1 + round % ENTRIES / 2)
            .map(|_| peer.submit(rig, NOTHING, 0, Vec::new(), 1).expect("room"))
            .collect();
        peer.flush(rig);
        assert!(rig.run_until(|| batch.iter().all(|command| command.completions.get() > 0)));
        batch.iter().for_each(|command| command.check_good());
    }
    peer.disconnect(rig);
    peer.ended(rig);
}

fn payloads_arrive_whole(rig: &mut Rig) {
    let peer = Peer::connect(rig, 1).opened(rig);
    for len in [4, 512, 4096, 4100, 8192, 8196, 16 << 10, 64 << 10, 300 << 10, 1 << 20] {
        for pieces in [1, 3, 7] {
            round_trip(rig, &peer, (len * pieces) % (1 << 20), len, pieces);
        }
    }
    // Several at once, each to a place of its own.
    let len = 20 << 10;
    let writes: Vec<_> = (0..8)
        .map(|at| peer.submit(rig, target::WRITE, at * len, pattern(at, len), 2).expect("room"))
        .collect();
    peer.flush(rig);
    assert!(rig.run_until(|| writes.iter().all(|command| command.completions.get() > 0)));
    let reads: Vec<_> =
        (0..8).map(|at| peer.submit(rig, READ, at * len, vec![0; len], 3).expect("room")).collect();
    peer.flush(rig);
    assert!(rig.run_until(|| reads.iter().all(|command| command.completions.get() > 0)));
    for (at, read) in reads.iter().enumerate() {
        read.check_good();
        assert!(read.payload == pattern(at, len), "payload {at} is another's");
    }
    peer.disconnect(rig);
    peer.ended(rig);
}

fn payloads_wait_for_buffers(rig: &mut Rig) {
    let peer = Peer::connect(rig, 0).opened(rig);
    for len in [512, 64 << 10] {
        let sent = pattern(9, len);
        peer.run(rig, LATE_WRITE, 4096, sent.clone(), 2);
        assert!(peer.run(rig, READ, 4096, vec![0; len], 1) == sent);
    }
    peer.disconnect(rig);
    peer.ended(rig);
}

fn a_full_queue_refuses_and_goes_on(rig: &mut Rig) {
    let peer = Peer::connect(rig, 0).opened(rig);
    let depth = peer.seen.depth.get().min(ENTRIES);
    let mut held = Vec::new();
    let refused = loop {
        match peer.submit(rig, HOLD, 0, Vec::new(), 1) {
            Ok(command) => held.push(command),
            Err(code) => break code,
        }
        assert!(held.len() <= depth as usize, "more than {depth} commands were taken");
    };
    assert_eq!((refused, held.len()), (errno::EAGAIN, depth as usize));
    peer.flush(rig);
    assert!(rig.run_until(|| target::held() == held.len()), "all arrive");
    target::answer_held(&rig.host, rig.module);
    assert!(rig.run_until(|| held.iter().all(|command| command.completions.get() > 0)));
    held.iter().for_each(|command| command.check_good());
    peer.run(rig, NOTHING, 0, Vec::new(), 1);
    peer.disconnect(rig);
    peer.ended(rig);
}

fn a_disconnect_returns_everything(rig: &mut Rig) {
    for held_first in [true, false] {
        let peer = Peer::connect(rig, 0).opened(rig);
        let mut commands: Vec<_> =
            (0..3).map(|_| peer.submit(rig, HOLD, 0, Vec::new(), 1).expect("room")).collect();
        commands.push(peer.submit(rig, target::WRITE, 0, pattern(1, 200 << 10), 3).expect("room"));
        commands.push(peer.submit(rig, READ, 0, vec![0; 200 << 10], 3).expect("room"));
        peer.flush(rig);
        if held_first {
            assert!(rig.run_until(|| target::held() >= 3));
        }
        peer.disconnect(rig);
        peer.disconnect(rig);
        peer.ended(rig);
        commands.iter().for_each(|command| command.check_over());
        assert!(rig.run_until(|| target::connections() == 0), "the target hears of it");
    }
}

fn a_close_of_the_target_returns_everything(rig: &mut Rig) {
    let peer = Peer::connect(rig, 1).opened(rig);
    let commands: Vec<_> = (0..4).map(|_| peer.submit(rig, HOLD, 0, Vec::new(), 1).expect("room")).collect();
    peer.flush(rig);
    assert!(rig.run_until(|| target::held() == 4));
    target::close_all(&rig.host, rig.module);
    peer.ended(rig);
    commands.iter().for_each(|command| command.check_over());
    assert!(rig.run_until(|| target::connections() == 0));
    assert!(peer.submit(rig, NOTHING, 0, Vec::new(), 1).is_err_and(|code| code != 0));
}

fn nobody_listening_is_an_end(rig: &mut Rig) {
    rig.stop_listening();
    let peer = Peer::connect(rig, 0);
    peer.ended(rig);
    assert!(!peer.has(ConnectionEventKind::CONNECTED));
    assert_eq!(peer.seen.reason.get(), CloseReason::REFUSED.0);
    rig.listen();
    let peer = Peer::connect(rig, 0).opened(rig);
    peer.run(rig, NOTHING, 0, Vec::new(), 1);
    peer.disconnect(rig);
    peer.ended(rig);
}

fn a_silent_target_is_given_up(rig: &mut Rig) {
    target::set_adopts(false);
    let started_ns = rig.host.now_ns();
    let peer = Peer::connect_within(rig, 0, 200_000_000);
    peer.ended(rig);
    assert!(!peer.has(ConnectionEventKind::CONNECTED));
    assert_eq!(peer.seen.reason.get(), CloseReason::TIMEOUT.0);
    assert!(rig.host.now_ns() - started_ns >= 200_000_000, "not before its time");
    target::set_adopts(true);
}

fn a_disconnect_in_any_state_ends(rig: &mut Rig) {
    for pause in 0..12 {
        let peer = Peer::connect(rig, pause % 2);
        let mut left = pause;
        rig.run_until(|| {
            left = left.saturating_sub(1);
            left == 0
        });
        peer.disconnect(rig);
        peer.ended(rig);
    }
    assert!(rig.run_until(|| target::connections() == 0));
}

fn connections_do_not_disturb_each_other(rig: &mut Rig) {
    let peers: Vec<Peer> = (0..8).map(|at| Peer::connect(rig, at % 2)).collect();
    let peers: Vec<Peer> = peers.into_iter().map(|peer| peer.opened(rig)).collect();
    for (at, peer) in peers.iter().enumerate() {
        round_trip(rig, peer, at << 16, 12 << 10, 2);
    }
    let (gone, left) = peers.split_at(4);
    let held = gone[0].submit(rig, HOLD, 0, Vec::new(), 1).expect("room");
    gone[0].flush(rig);
    gone.iter().for_each(|peer| peer.disconnect(rig));
    for peer in left {
        round_trip(rig, peer, 0, 40 << 10, 3);
    }
    gone.iter().for_each(|peer| peer.ended(rig));
    held.check_over();
    for peer in left {
        peer.run(rig, NOTHING, 0, Vec::new(), 1);
        peer.disconnect(rig);
        peer.ended(rig);
    }
}

fn a_stopped_listener_keeps_its_connections(rig: &mut Rig) {
    let peer = Peer::connect(rig, 0).opened(rig);
    rig.stop_listening();
    round_trip(rig, &peer, 0, 4096, 1);
    peer.disconnect(rig);
    peer.ended(rig);
}

fn options_and_statistics_are_objects(rig: &mut Rig) {
    let peer = Peer::connect(rig, 0).opened(rig);
    round_trip(rig, &peer, 0, 4096, 1);
    let [target, initiator] = rig.statistics_json();
    for text in [rig.options_json(), target, initiator] {
        let value: serde_json::Value = serde_json::from_str(&text).expect("json");
        assert!(value.is_object(), "{text}");
    }
    peer.disconnect(rig);
    peer.ended(rig);
}
