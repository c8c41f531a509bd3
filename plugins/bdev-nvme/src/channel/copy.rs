//! Copies within a namespace. The host cuts them to what the namespace takes at
//! once; one of more source ranges than a command has room for is carried out in
//! several, one after the other.

use std::rc::Rc;

use nvme_spec::command::Sqe;
use nvme_spec::io::{CopyCommand, CopyRange, IoControl};
use nvme_spec::opcode::IoOpcode;
use tenon_sdk::abi::CopyRange as Source;
use tenon_sdk::{FabricCommand, Io, IoFlags, IoStatus, PayloadOf};
use zerocopy::{FromZeros, IntoBytes};

use super::NvmeChannel;
use crate::queue::IoQueue;

impl NvmeChannel {
    /// Sends a copy of the next source ranges; the queue it went to, which is to be flushed.
    pub(super) fn start_copy(&self, io: Io<Self>, queue: Rc<IoQueue>, nsid: u32) -> Option<Rc<IoQueue>> {
        let (done, left) = io.copy_ranges().split_at(io.context().tag as usize);
        let now = &left[..left.len().min(self.ranges_at_once())];
        let target = io.offset_blocks() + done.iter().map(|range| range.num_blocks).sum::<u64>();
        let mut room = [0; MAX_RANGES * RANGE_BYTES];
        let Some(sqe) = encode(nsid, target, now, io.flags().contains(IoFlags::FUA), &mut room) else {
            io.complete(IoStatus::INVALID);
            return None;
        };
        let payload = PayloadOf::Inline(&room[..now.len() * RANGE_BYTES]);
        self.give(io, queue, &FabricCommand { sqe, payload })
    }

    /// A copy of some of the source ranges succeeded.
    pub(super) fn copied(&self, mut io: Io<Self>) {
        let all = io.copy_ranges().len();
        let done = (io.context().tag as usize + self.ranges_at_once()).min(all);
        if done == all {
            return io.complete(IoStatus::SUCCESS);
        }
        io.context_mut().tag = done as u32;
        self.again(io);
    }

    fn ranges_at_once(&self) -> usize {
        usize::from(self.table.options.copy_ranges).clamp(1, MAX_RANGES)
    }
}

/// The command, and its ranges in `room`; `None` if a range is longer than a command can say.
fn encode(
    nsid: u32,
    target: u64,
    sources: &[Source],
    is_fua: bool,
    room: &mut [u8; MAX_RANGES * RANGE_BYTES],
) -> Option<[u8; 64]> {
    let mut command = CopyCommand::new_zeroed();
    command.head.opc = IoOpcode::COPY.0;
    command.head.nsid.set(nsid);
    command.sdlba.set(target);
    command.nr_z = u8::try_from(sources.len().checked_sub(1)?).ok()?;
    command.control = IoControl::new(if is_fua { IoControl::FUA.get() } else { 0 });
    for (source, room) in sources.iter().zip(room.chunks_exact_mut(RANGE_BYTES)) {
        let mut range = CopyRange::new_zeroed();
        range.slba.set(source.offset_blocks);
        range.nlb_z.set(u16::try_from(source.num_blocks.checked_sub(1)?).ok()?);
        room.copy_from_slice(range.as_bytes());
    }
    let mut sqe = [0; 64];
    sqe.copy_from_slice(Sqe::from_view(&command).as_bytes());
    Some(sqe)
}

const RANGE_BYTES: usize = size_of::<CopyRange>();
/// Source ranges of one command that travel with it.
pub(crate) const MAX_RANGES: usize = PayloadOf::MAX_INLINE / RANGE_BYTES;

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;

    fn source(offset_blocks: u64, num_blocks: u64) -> Source {
        Source { offset_blocks, num_blocks }
    }

    #[test]
    fn a_copy_names_its_target_and_its_sources() {
        let mut room = [0; MAX_RANGES * RANGE_BYTES];
        let sqe = encode(3, 1 << 40, &[source(7, 1), source(9, 65_536)], true, &mut room).unwrap();
        let sqe = Sqe::read_from_bytes(&sqe[..]).unwrap();
        let copy: &CopyCommand = sqe.view();
        assert_eq!((sqe.opc, sqe.nsid.get(), copy.sdlba.get()), (IoOpcode::COPY.0, 3, 1 << 40));
        assert_eq!((copy.range_count(), copy.descriptor_format()), (2, 0));
        assert!(copy.control.contains(IoControl::FUA));
        let (ranges, _) = <[CopyRange; 2]>::read_from_prefix(&room[..]).unwrap();
        let told = ranges.map(|range| (range.slba.get(), range.block_count()));
        assert_eq!(told, [(7, 1), (9, 65_536)]);
    }

    #[test]
    fn a_range_that_a_command_cannot_say_is_none() {
        let mut room = [0; MAX_RANGES * RANGE_BYTES];
        assert_eq!(encode(1, 0, &[source(0, 65_537)], false, &mut room), None);
        assert_eq!(encode(1, 0, &[source(0, 0)], false, &mut room), None);
        assert_eq!(encode(1, 0, &[], false, &mut room), None);
    }
}
