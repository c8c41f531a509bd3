//! The list of frozen types with size, alignment and field offsets: one list
//! that feeds `abi.lock` and, under `certificate`, the certificate. A field
//! missing from the list does not compile.

use core::mem::{align_of, offset_of, size_of};

/// A field of a frozen struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Its offset in bytes.
    pub offset: usize,
}

/// A frozen type.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Its name.
    pub name: &'static str,
    /// Its size in bytes.
    pub size: usize,
    /// Its alignment in bytes.
    pub align: usize,
    /// Its fields in order.
    pub fields: &'static [Field],
}

macro_rules! frozen {
    ($( $path:path as $name:literal { $($field:ident),* $(,)? } )*) => {
        /// Every frozen type of the contract.
        pub const TYPES: &[Layout] = &[$(
            Layout {
                name: $name,
                size: size_of::<$path>(),
                align: align_of::<$path>(),
                fields: &[$( Field { name: stringify!($field), offset: offset_of!($path, $field) } ),*],
            }
        ),*];
        $(
            const _: () = {
                #[allow(unused)]
                fn every_field_is_listed(value: &$path) {
                    let $path { $($field: _),* } = value;
                }
            };
        )*
        #[cfg(feature = "certificate")]
        pub(crate) static CERTIFIED: &[crate::certificate::TypeEntry] = &[$(
            crate::certificate::TypeEntry {
                name: abi_stable::std_types::RStr::from_str($name),
                layout: <$path as abi_stable::StableAbi>::LAYOUT,
            }
        ),*];
    };
}

frozen! {
    crate::Str as "Str" { ptr, len }
    crate::IoVec as "IoVec" { base, len }
    crate::JsonSink as "JsonSink" { write, arg }
    crate::ErrorV1 as "ErrorV1" { size, code, object, reason, cause }
    crate::BdevIo as "BdevIo" {
        op, state, flags, iovcnt, iovs, offset_blocks, num_blocks, done, done_arg, ch, status, cdw0, md, ext, link,
        submit_ticks, inline_iov, host,
    }
    crate::IoExtV1 as "IoExtV1" {
        size, flags, nvme_sqe, nvme_cqe, copy_ranges, copy_range_count, compare_iovcnt, compare_iovs, md_len,
        zone_action, reserved, memory_key,
    }
    crate::CopyRange as "CopyRange" { offset_blocks, num_blocks }
    crate::IoOpsV1 as "IoOpsV1" { size, flags, submit, submit_batch, abort, release }
    crate::IoChannel as "IoChannel" {
        ops, ctx, outstanding, io_ctx_size, flags, faults, reactor, host, retry, reserved,
    }
    crate::Limits as "Limits" {
        num_blocks, block_size, physical_block_size, md_size, required_alignment, optimal_io_boundary, write_unit,
        max_transfer_blocks, max_segments, max_segment_bytes, max_unmap_blocks, max_write_zeroes_blocks,
        max_copy_blocks, atomic_write_blocks, atomic_compare_write_blocks, preferred_write_granularity,
        preferred_write_alignment, preferred_unmap_granularity, preferred_unmap_alignment, optimal_write_size,
        reserved,
    }
    crate::BdevV1 as "BdevV1" {
        size, flags, limits, io_types, io_flags, uuid, nguid, eui64, numa_node, alias_count, name, product, aliases,
        ctx, ops,
    }
    crate::BdevOpsV1 as "BdevOpsV1" {
        size, flags, channel_create, channel_destroy, destruct, dump_json, config_json, reset_stats,
        stats_json, rolled_back,
    }
    crate::BdevInfo as "BdevInfo" {
        size, flags, bdev, limits, io_types, io_flags, uuid, nguid, eui64, numa_node, state, name, product, module,
    }
    crate::BdevEvent as "BdevEvent" { size, kind, bdev, reason, reserved, value, deadline_ns, detail }
    crate::HotplugEvent as "HotplugEvent" { size, kind, subsystem, id, generation, attributes_json }
    crate::LogRecord as "LogRecord" { size, level, line, reserved, target, file, message }
    crate::PollerV1 as "PollerV1" { size, flags, name, period_us, callback, before_sleep, arg }
    crate::MemoryRegion as "MemoryRegion" { base, len, id, numa_node, page_size }
    crate::MetricDesc as "MetricDesc" { size, kind, name, help, labels_json }
    crate::AbiSizes as "AbiSizes" {
        bdev_io, io_channel, io_ext, limits, bdev_event, hotplug_event, log_record, error,
    }
    crate::PluginDescV1 as "PluginDescV1" {
        magic, size, abi_major, abi_minor, sizes, name, version, built_with, ops,
    }
    crate::ModuleOpsV1 as "ModuleOpsV1" {
        size, flags, init, init_complete, configure, create, update, delete, examine_config, examine_disk, hotplug,
        quiesce, fini, schema, validate, set_log_level, query, validate_config, config_json,
    }
    crate::HostApiV1 as "HostApiV1" {
        size, abi_major, abi_minor, query, log, now_ns, ticks, ticks_hz, alloc, free, memory_subscribe,
        memory_unsubscribe, buffer_get, buffer_put, metric_register, reactor_current, reactor_control,
        reactor_count, reactor_nth, reactor_index, send, offload, poller_register, poller_unregister, poller_set,
        timer_start, timer_cancel, fd_register, fd_modify, fd_unregister, bdev_register, bdev_unregister,
        bdev_resize, bdev_publish, bdev_set_absent, bdev_set_present, bdev_find, bdev_open, bdev_close, bdev_claim,
        bdev_info, channel_get, channel_put, op_done, examine_done, notify, rpc_register, hotplug_publish,
        hotplug_watch, hotplug_unwatch,
    }
    crate::OperationTableV1 as "OperationTableV1" {
        size, flags, base_is_coming,
    }
    crate::KeyringTableV1 as "KeyringTableV1" {
        size, flags, acquire, release,
    }
    crate::transport::MemoryKeys as "MemoryKeys" {
        local_key, remote_key,
    }
    crate::transport::target::NvmfTargetApiV1 as "NvmfTargetApiV1" {
        size, flags, connection_new, queue_pair_open, queue_pair_closed, request_begin, request_execute,
        request_release, device_event, psk_lookup, request_fail, connection_dropped,
    }
    crate::transport::initiator::TransportTableApiV2 as "TransportTableApiV2" {
        size, flags, acquire, release,
    }
    crate::transport::TransportId as "TransportId" {
        size, trtype, adrfam, reserved, traddr, trsvcid, subnqn,
    }
    crate::transport::TransportV1 as "TransportV1" {
        size, flags, name, trtype, reserved, target, initiator,
    }
    crate::transport::DeviceEvent as "DeviceEvent" {
        size, state, name, generation, deadline_ns, reason,
    }
    crate::transport::target::TargetRequest as "TargetRequest" {
        sqe, cqe, iovs, iovcnt, length, direction, reserved, capsule_length, capsule_data, queue_pair, link,
        inline_iov, memory_key, host,
    }
    crate::transport::target::ConnectionInfo as "ConnectionInfo" {
        size, queue_depth, in_capsule_size, secure, peer, local, listener, psk_identity,
    }
    crate::transport::target::DiscoveryInfo as "DiscoveryInfo" {
        treq, reserved, tsas,
    }
    crate::transport::target::TargetOpsV1 as "TargetOpsV1" {
        size, flags, create, destroy, options_json, statistics_json, listen, stop_listen, listener_discover,
        poll_group_create, poll_group_destroy, connection_adopt, connection_close, connection_free,
        request_complete, request_buffers,
    }
    crate::transport::initiator::InitiatorRequest as "InitiatorRequest" {
        sqe, cqe, iovs, iovcnt, length, direction, reserved, status, done, done_arg, connection, link, keys,
        transport,
    }
    crate::transport::initiator::ConnectParams as "ConnectParams" {
        size, qid, queue_size, cntlid, peer, local, hostnqn, options_json, deadline_ns, psk_identity, psk, psk_len,
    }
    crate::transport::initiator::ConnectionEvent as "ConnectionEvent" {
        size, kind, reason, status, queue_depth, in_capsule_size, detail,
    }
    crate::transport::initiator::InitiatorOpsV1 as "InitiatorOpsV1" {
        size, request_ctx_size, poll_group_create, poll_group_destroy, connect, disconnect, connection_free,
        submit, flush, memory_register, memory_unregister, device_subscribe, statistics_json,
    }
}
