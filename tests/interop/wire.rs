//! Two wires between this machine's initiator and a target in a network
//! namespace of its own, which can lose, delay and reorder.

use std::process::Command;

use tenon_tests::initiator::Path;
use tenon_tests::{Host, Scratch, tenon};

use crate::kernel::sh;

/// The subsystem at the other end.
pub const NQN: &str = "nqn.2026-01.io.tenon:wire";
const PORT: u16 = 4420;

/// The wires; the far ends are in the namespace `far`.
pub struct Wire;

impl Wire {
    /// Lays both.
    pub fn start() -> Wire {
        sh("ip netns add far && ip -n far link set lo up");
        for at in 0..2 {
            sh(&format!("ip link add near{at} type veth peer name far{at} netns far"));
            sh(&format!("ip addr add 10.0.{at}.1/24 dev near{at} && ip link set near{at} up"));
            sh(&format!("ip -n far addr add 10.0.{at}.2/24 dev far{at} && ip -n far link set far{at} up"));
        }
        Wire
    }

    /// A target at the far end, with a listener on each wire.
    pub fn target(&self) -> Host {
        let scratch = Scratch::new();
        let mut text = format!(
            "[[bdev]]\nmodule = \"uring\"\nname = \"f0\"\nfilename = \"{}\"\ncreate_size = \"16MiB\"\nblock_size = 4096\n\
             [[transport]]\ntrtype = \"TCP\"\n[[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\n\
             [[subsystem.namespace]]\nbdev_name = \"f0\"\n",
            scratch.join("disk.img").display()
        );
        for path in self.paths() {
            text += &format!("[[subsystem.listener]]\ntraddr = \"{}\"\ntrsvcid = {PORT}\n", path.traddr);
        }
        let file = scratch.write("tenon.toml", &text);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", "far"]).arg(tenon()).arg("run").arg("-c").arg(file);
        command.arg("--rpc-socket").arg(scratch.join("rpc.sock"));
        Host::spawn(scratch, command)
    }

    /// Ways to the far end.
    pub fn paths(&self) -> Vec<Path> {
        (0..2).map(|at| Path { traddr: format!("10.0.{at}.2"), trsvcid: PORT }).collect()
    }

    /// Loses a share of the packets of one wire, in both directions.
    pub fn lose(&self, at: usize, share: &str) {
        self.bend(at, &format!("loss {share}"));
    }

    /// Does to one wire what netem is told.
    pub fn bend(&self, at: usize, how: &str) {
        sh(&format!("tc qdisc replace dev near{at} root netem {how}"));
        sh(&format!("tc -n far qdisc replace dev far{at} root netem {how}"));
    }

    /// Makes one wire perfect again.
    pub fn heal(&self, at: usize) {
        sh(&format!("tc qdisc del dev near{at} root; tc -n far qdisc del dev far{at} root"));
    }
}
