/*
 * The contract between the Tenon host and a plugin in C. Generated from
 * plugin-api/abi by `cargo xtask abi --bless`: do not edit.
 *
 * A plugin exports one symbol, tenon_plugin_v1(). Every comment below is the
 * contract: who calls, on which thread, who owns each pointer.
 */

#ifndef TENON_PLUGIN_H
#define TENON_PLUGIN_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
/* First eight bytes of every TenonPluginDescV1: "TENONABI" read as a little-endian integer. */
#define TENON_MAGIC UINT64_C(0x4942414E4F4E4554)
#define TENON_ALIGNED(n) __attribute__((aligned(n)))

struct TenonStr;
struct TenonIoVec;
struct TenonJsonSink;
struct TenonErrorV1;
struct TenonBdevIo;
struct TenonIoExtV1;
struct TenonCopyRange;
struct TenonIoOpsV1;
struct TenonIoChannel;
struct TenonLimits;
struct TenonBdevV1;
struct TenonBdevOpsV1;
struct TenonBdevInfo;
struct TenonBdevEvent;
struct TenonHotplugEvent;
struct TenonLogRecord;
struct TenonPollerV1;
struct TenonMemoryRegion;
struct TenonMetricDesc;
struct TenonAbiSizes;
struct TenonPluginDescV1;
struct TenonModuleOpsV1;
struct TenonHostApiV1;
struct TenonOperationTableV1;
struct TenonKeyringTableV1;
struct TenonMemoryKeys;
struct TenonNvmfTargetApiV1;
struct TenonTransportTableApiV2;
struct TenonTransportId;
struct TenonTransportV1;
struct TenonDeviceEvent;
struct TenonTargetRequest;
struct TenonConnectionInfo;
struct TenonDiscoveryInfo;
struct TenonTargetOpsV1;
struct TenonInitiatorRequest;
struct TenonConnectParams;
struct TenonConnectionEvent;
struct TenonInitiatorOpsV1;


/*
 Major version: the entry symbol carries it, and it changes only with an incompatible contract.
 */
#define TENON_ABI_MAJOR 1

/*
 Minor version: grows by one with every appended field or constant.
 */
#define TENON_ABI_MINOR 0

/*
 Bytes of [`BdevIo`]; the driver context follows at this offset.
 */
#define TENON_BDEV_IO_SIZE 128

/*
 Borrowed UTF-8 text, valid during the call that passes it and not NUL-terminated.
 A receiver that needs it longer copies it. `len == 0` allows a null `ptr`.
 */
typedef struct TenonStr {
    /*
     First byte.
     */
    const uint8_t *ptr;
    /*
     Length in bytes.
     */
    size_t len;
} TenonStr;

/*
 One piece of a scatter list; the same layout as `struct iovec`.
 */
typedef struct TenonIoVec {
    /*
     First byte.
     */
    void *base;
    /*
     Length in bytes.
     */
    size_t len;
} TenonIoVec;

/*
 Where a callback writes JSON text: call `write` any number of times; the pieces are concatenated.
 Owned by the host, valid during the call.
 */
typedef struct TenonJsonSink {
    /*
     Appends a piece of text.
     */
    void (*write)(void *arg, struct TenonStr text);
    /*
     First argument of `write`.
     */
    void *arg;
} TenonJsonSink;

/*
 An operator-facing error. All texts are lower case without a full stop.
 */
typedef struct TenonErrorV1 {
    /*
     Bytes of this struct the writer knows.
     */
    uint32_t size;
    /*
     `-errno`; `-ENODEV` with `object` naming a bdev means "waiting for that bdev".
     */
    int32_t code;
    /*
     The object that failed, by its name; for a missing base device, that device's name.
     */
    struct TenonStr object;
    /*
     What is wrong, with the bad value and what would be right.
     */
    struct TenonStr reason;
    /*
     The underlying cause, or empty.
     */
    struct TenonStr cause;
} TenonErrorV1;

/*
 Operation of an I/O.
 */
typedef uint8_t TenonOp;
/*
 Read `num_blocks` into `iovs` (or lend memory, see [`IoFlags::LEND`]).
 */
#define TenonOp_READ 0
/*
 Write `num_blocks` from `iovs`.
 */
#define TenonOp_WRITE 1
/*
 Make every completed write durable.
 */
#define TenonOp_FLUSH 2
/*
 Deallocate blocks; later reads give zeroes or old data as the device declares.
 */
#define TenonOp_UNMAP 3
/*
 Write zeroes without a payload.
 */
#define TenonOp_WRITE_ZEROES 4
/*
 Reset the device. The host freezes and drains the device first.
 */
#define TenonOp_RESET 5
/*
 Compare the medium with `iovs`; a difference is [`IoStatus::MISCOMPARE`].
 */
#define TenonOp_COMPARE 6
/*
 Atomically compare with `ext.compare_iovs`, then write `iovs`.
 */
#define TenonOp_COMPARE_AND_WRITE 7
/*
 Copy `ext.copy_ranges` to `offset_blocks`.
 */
#define TenonOp_COPY 8
/*
 Check that blocks can be read, without transferring them.
 */
#define TenonOp_VERIFY 9
/*
 Mark blocks so that reading them fails until they are written again.
 */
#define TenonOp_WRITE_UNCORRECTABLE 10
/*
 NVMe admin command in `ext.nvme_sqe`, data in `iovs`.
 */
#define TenonOp_NVME_ADMIN 11
/*
 NVMe I/O command in `ext.nvme_sqe`, data in `iovs`.
 */
#define TenonOp_NVME_IO 12
/*
 Report zones into `iovs`.
 */
#define TenonOp_GET_ZONE_INFO 13
/*
 Zone action in `ext`.
 */
#define TenonOp_ZONE_MANAGEMENT 14
/*
 Append to the zone that starts at `offset_blocks`.
 */
#define TenonOp_ZONE_APPEND 15
/*
 Find the next unallocated block from `offset_blocks`; the answer replaces `offset_blocks`.
 */
#define TenonOp_SEEK_HOLE 16
/*
 Find the next allocated block from `offset_blocks`; the answer replaces `offset_blocks`.
 */
#define TenonOp_SEEK_DATA 17
/*
 Number of operations this minor version knows.
 */
#define TenonOp_COUNT 18

/*
 Who owns an I/O now; lets a second completion be caught.
 */
typedef uint8_t TenonIoState;
/*
 With the consumer.
 */
#define TenonIoState_IDLE 0
/*
 With the host or the module.
 */
#define TenonIoState_SUBMITTED 1

/*
 Flags of an I/O; a device states in [`crate::BdevV1::io_flags`] which it understands.
 */
typedef uint16_t TenonIoFlags;
/*
 No flag.
 */
#define TenonIoFlags_NONE 0
/*
 Force unit access: durable before completion.
 */
#define TenonIoFlags_FUA 1
/*
 READ: the consumer accepts lent memory. `iovs` may then be null with `iovcnt == 0`.
 */
#define TenonIoFlags_LEND (1 << 1)
/*
 READ, set by the module before completion: `iovs` describes the module's own memory. The I/O stays
 outstanding until the consumer returns it through [`IoOpsV1::release`] of the channel it submitted on.
 */
#define TenonIoFlags_LENT (1 << 2)
/*
 WRITE_ZEROES: the blocks may be deallocated.
 */
#define TenonIoFlags_DEALLOCATE (1 << 3)
/*
 Report `-ENOMEM` to the consumer instead of retrying in the host.
 */
#define TenonIoFlags_NO_RETRY (1 << 4)
/*
 Flags the host itself consumes; a device need not declare them.
 */
#define TenonIoFlags_HOST (((1 << 1) | (1 << 2)) | (1 << 4))

/*
 Operations of a channel. On the channel a consumer holds they are the host's gate; on the channel a
 module created they are the module's. All run on the channel's reactor and must not block.
 */
typedef struct TenonIoOpsV1 {
    /*
     Bytes of this table the writer knows.
     */
    uint32_t size;
    /*
     Reserved, 0.
     */
    uint32_t flags;
    /*
     Starts one I/O. The module owns `io` until it calls [`complete`] on it, exactly once, now or later.
     */
    void (*submit)(struct TenonIoChannel *ch, struct TenonBdevIo *io);
    /*
     Starts `count` I/Os with one doorbell or system call; optional.
     */
    void (*submit_batch)(struct TenonIoChannel *ch, struct TenonBdevIo *const *ios, uint32_t count);
    /*
     Asks to finish `victim` early; it still completes exactly once, with any status. Returns 0 if the
     victim was found, `-ENOENT` if not (completed or never seen). Optional.
     */
    int32_t (*abort)(struct TenonIoChannel *ch, struct TenonBdevIo *victim);
    /*
     Returns the memory of a READ that completed with [`IoFlags::LENT`]. Optional for a module.
     */
    void (*release)(struct TenonIoChannel *ch, struct TenonBdevIo *io);
} TenonIoOpsV1;

/*
 A reactor; opaque.
 */
typedef struct TenonHostReactor {
    uint8_t _private[0];
} TenonHostReactor;

/*
 Public head of a channel: one device on one reactor. Allocated by the host.
 */
typedef struct TenonIoChannel {
    /*
     Current operations; the host swaps them to freeze, limit, trace or orphan a device.
     */
    const struct TenonIoOpsV1 *ops;
    /*
     The module's channel context. Set by [`crate::BdevOpsV1::channel_create`].
     */
    void *ctx;
    /*
     I/Os submitted to this channel and not yet completed, or completed with memory still lent.
     */
    uint32_t outstanding;
    /*
     Driver context an I/O on this channel needs: this layer and all below, in bytes, multiple of 64.
     */
    uint32_t io_ctx_size;
    /*
     Reserved, 0.
     */
    uint32_t flags;
    /*
     Completions that arrived for an I/O that was not submitted; a module fault, counted.
     */
    uint32_t faults;
    /*
     The reactor this channel belongs to.
     */
    struct TenonHostReactor *reactor;
    /*
     The host's.
     */
    void *host;
    /*
     Called by [`complete`] instead of `done` for [`IoStatus::NOMEM`], so that the host can retry. Set by the host.
     */
    void (*retry)(struct TenonIoChannel *ch, struct TenonBdevIo *io);
    /*
     Reserved, 0.
     */
    uint64_t reserved[1];
} TenonIoChannel;

/*
 Result of an I/O: 0, `-errno`, or an NVMe status (`1 << 30 | dnr << 14 | sct << 8 | sc`).
 */
typedef int32_t TenonIoStatus;
/*
 Done as asked.
 */
#define TenonIoStatus_SUCCESS 0
/*
 Generic device error.
 */
#define TenonIoStatus_IO_ERROR -EIO
/*
 The module lacks a resource; the host retries the I/O when others have completed.
 */
#define TenonIoStatus_NOMEM -ENOMEM
/*
 The device is gone.
 */
#define TenonIoStatus_NO_DEVICE -ENODEV
/*
 The operation or flag is not declared by the device.
 */
#define TenonIoStatus_NOT_SUPPORTED -ENOTSUP
/*
 Malformed request: alignment, scatter list or field value.
 */
#define TenonIoStatus_INVALID -EINVAL
/*
 The descriptor or device is read-only, or another module holds a claim.
 */
#define TenonIoStatus_NOT_PERMITTED -EPERM
/*
 Deadline passed.
 */
#define TenonIoStatus_TIMED_OUT -ETIMEDOUT
/*
 Aborted by request, reset or removal.
 */
#define TenonIoStatus_ABORTED -ECANCELED

/*
 One source range of a COPY.
 */
typedef struct TenonCopyRange {
    /*
     First source block.
     */
    uint64_t offset_blocks;
    /*
     Number of blocks.
     */
    uint64_t num_blocks;
} TenonCopyRange;

/*
 Rarely used arguments of an I/O.
 */
typedef struct TenonIoExtV1 {
    /*
     Bytes of this struct the writer knows.
     */
    uint32_t size;
    /*
     Reserved, 0.
     */
    uint32_t flags;
    /*
     64-byte NVMe submission queue entry of NVME_ADMIN and NVME_IO.
     */
    const uint8_t *nvme_sqe;
    /*
     16-byte NVMe completion queue entry, written by the module.
     */
    uint32_t *nvme_cqe;
    /*
     Sources of COPY.
     */
    const struct TenonCopyRange *copy_ranges;
    /*
     Number of `copy_ranges`.
     */
    uint32_t copy_range_count;
    /*
     Pieces in `compare_iovs`.
     */
    uint32_t compare_iovcnt;
    /*
     Data COMPARE_AND_WRITE compares with.
     */
    const struct TenonIoVec *compare_iovs;
    /*
     Bytes at `BdevIo::md`.
     */
    uint64_t md_len;
    /*
     Zone action of ZONE_MANAGEMENT (NVMe ZNS values).
     */
    uint32_t zone_action;
    /*
     Reserved, 0.
     */
    uint32_t reserved;
    /*
     Local key of the payload's memory region, for a device that does DMA; 0 if unknown.
     */
    uint64_t memory_key;
} TenonIoExtV1;

/*
 One block I/O: a hot and a cold cache line, then [`IoChannel::io_ctx_size`] bytes of driver context.

 The consumer allocates it (64-byte aligned, `BDEV_IO_SIZE + io_ctx_size` bytes, zeroed once), fills the
 request fields and owns it again when `done` runs. The driver context's content is undefined at submit.
 */
typedef struct TENON_ALIGNED(64) TenonBdevIo {
    /*
     Operation. Consumer sets.
     */
    TenonOp op;
    /*
     Set by [`submit`] and [`complete`]; the consumer initialises it to [`IoState::IDLE`] once.
     */
    TenonIoState state;
    /*
     Flags. Consumer sets; a module may add [`IoFlags::LENT`].
     */
    TenonIoFlags flags;
    /*
     Pieces in `iovs`.
     */
    uint32_t iovcnt;
    /*
     Payload; the list and the memory stay valid until `done`.
     */
    struct TenonIoVec *iovs;
    /*
     First block.
     */
    uint64_t offset_blocks;
    /*
     Number of blocks; 0 only for operations without a range.
     */
    uint64_t num_blocks;
    /*
     Called exactly once, on the channel's reactor, possibly from inside [`submit`].
     */
    void (*done)(struct TenonBdevIo *io, void *arg);
    /*
     Second argument of `done`.
     */
    void *done_arg;
    /*
     Channel the I/O is on now. Set by [`submit`], and by the host when it forwards.
     */
    struct TenonIoChannel *ch;
    /*
     Result; valid in `done`.
     */
    TenonIoStatus status;
    /*
     Command-specific result of an NVMe command; else 0.
     */
    uint32_t cdw0;
    /*
     Separate metadata, or null.
     */
    void *md;
    /*
     Rarely used arguments, or null.
     */
    const struct TenonIoExtV1 *ext;
    /*
     For whoever holds the I/O: lets a driver queue it without allocating.
     */
    struct TenonBdevIo *link;
    /*
     The host's, while the I/O is submitted: time stamp of submission in ticks.
     */
    uint64_t submit_ticks;
    /*
     For whoever fills `iovs`: room for a list of one.
     */
    struct TenonIoVec inline_iov;
    /*
     The host's, while the I/O is submitted.
     */
    void *host[2];
} TenonBdevIo;

/*
 Geometry and limits; the host's gate keeps every I/O within them by refusing or splitting.
 A limit of 0 means "none". Blocks are of `block_size` bytes.
 */
typedef struct TenonLimits {
    /*
     Capacity.
     */
    uint64_t num_blocks;
    /*
     Logical block: a power of two, 512 to 65,536 bytes (metadata not included).
     */
    uint32_t block_size;
    /*
     Physical block in bytes; a multiple of `block_size`.
     */
    uint32_t physical_block_size;
    /*
     Metadata per block in bytes.
     */
    uint32_t md_size;
    /*
     Alignment every piece of a payload must have, in bytes, a power of two; the host bounces other payloads.
     */
    uint32_t required_alignment;
    /*
     Blocks; see [`BdevFlags::SPLIT_ON_BOUNDARY`].
     */
    uint32_t optimal_io_boundary;
    /*
     Blocks; see [`BdevFlags::SPLIT_ON_WRITE_UNIT`].
     */
    uint32_t write_unit;
    /*
     Largest READ or WRITE in blocks.
     */
    uint32_t max_transfer_blocks;
    /*
     Most pieces in a payload.
     */
    uint32_t max_segments;
    /*
     Largest piece in bytes.
     */
    uint32_t max_segment_bytes;
    /*
     Largest UNMAP in blocks.
     */
    uint32_t max_unmap_blocks;
    /*
     Largest WRITE_ZEROES in blocks.
     */
    uint32_t max_write_zeroes_blocks;
    /*
     Largest COPY in blocks.
     */
    uint32_t max_copy_blocks;
    /*
     Blocks written atomically on power loss.
     */
    uint32_t atomic_write_blocks;
    /*
     Blocks handled atomically by COMPARE_AND_WRITE.
     */
    uint32_t atomic_compare_write_blocks;
    /*
     Preferred write granularity in blocks (NVMe NPWG).
     */
    uint32_t preferred_write_granularity;
    /*
     Preferred write alignment in blocks (NVMe NPWA).
     */
    uint32_t preferred_write_alignment;
    /*
     Preferred UNMAP granularity in blocks (NVMe NPDG).
     */
    uint32_t preferred_unmap_granularity;
    /*
     Preferred UNMAP alignment in blocks (NVMe NPDA).
     */
    uint32_t preferred_unmap_alignment;
    /*
     Optimal write size in blocks (NVMe NOWS).
     */
    uint32_t optimal_write_size;
    /*
     Reserved, 0.
     */
    uint32_t reserved;
} TenonLimits;

/*
 Properties of a device.
 */
typedef uint32_t TenonBdevFlags;
/*
 Writes are refused.
 */
#define TenonBdevFlags_READ_ONLY 1
/*
 Completed writes may be lost without a FLUSH.
 */
#define TenonBdevFlags_VOLATILE_WRITE_CACHE (1 << 1)
/*
 The host splits READ and WRITE at multiples of `optimal_io_boundary`.
 */
#define TenonBdevFlags_SPLIT_ON_BOUNDARY (1 << 2)
/*
 The host splits WRITE at multiples of `write_unit` and refuses partial units.
 */
#define TenonBdevFlags_SPLIT_ON_WRITE_UNIT (1 << 3)
/*
 Deallocated blocks read as zeroes.
 */
#define TenonBdevFlags_UNMAP_READS_ZEROES (1 << 4)
/*
 Metadata is interleaved with the data of each block.
 */
#define TenonBdevFlags_METADATA_INTERLEAVED (1 << 5)
/*
 The medium rotates.
 */
#define TenonBdevFlags_ROTATIONAL (1 << 6)
/*
 A zoned device.
 */
#define TenonBdevFlags_ZONED (1 << 7)

/*
 An answer owed to the host for a lifecycle operation (create, delete, RPC, fini, destruct, …).
 Must be given to [`HostApiV1::op_done`] exactly once, from the control thread. `0` means "none".
 */
typedef uint64_t TenonOpToken;

/*
 Lifecycle callbacks of a device.
 */
typedef struct TenonBdevOpsV1 {
    /*
     Bytes of this table the writer knows.
     */
    uint32_t size;
    /*
     Reserved, 0.
     */
    uint32_t flags;
    /*
     Opens the device on the calling reactor: sets `ch.ops`, `ch.ctx` and `ch.io_ctx_size` (0 if it keeps no
     per-I/O state). Returns 0 or `-errno`; on failure nothing is kept. May open channels of base devices.
     */
    int32_t (*channel_create)(void *ctx, struct TenonIoChannel *ch);
    /*
     Closes it, on the same reactor, when `ch.outstanding == 0`.
     */
    void (*channel_destroy)(void *ctx, struct TenonIoChannel *ch);
    /*
     Control thread, once, after every descriptor and channel is closed. The module frees what it holds
     (closes its base devices) and answers `token` now or later; then the host forgets the device.
     */
    void (*destruct)(void *ctx, TenonOpToken token);
    /*
     Control thread: writes one JSON object for `driver_specific` in `bdev_get_bdevs`. Optional.
     */
    void (*dump_json)(void *ctx, const struct TenonJsonSink *sink);
    /*
     Control thread: writes the device's current parameters as one JSON object, such that creating a device
     from it gives the same device. Absent, or writing nothing: the host saves the parameters of the create
     call. Optional.
     */
    void (*config_json)(void *ctx, const struct TenonJsonSink *sink);
    /*
     Control thread: the host reset this device's statistics; the module may reset its own. Optional.
     */
    void (*reset_stats)(void *ctx);
    /*
     Control thread: writes one JSON object for `driver_specific` in `bdev_get_iostat`, of what the module
     itself counts and `reset_stats` resets. Absent, or writing nothing: it counts nothing. Optional.
     */
    void (*stats_json)(void *ctx, const struct TenonJsonSink *sink);
    /*
     Control thread, just before `destruct`: the create that registered this device has failed after all, e.g.
     because its examination did not end in time. What it wrote, which would bring the device back, is to go with
     the device. Absent: it wrote nothing. Optional.
     */
    void (*rolled_back)(void *ctx);
} TenonBdevOpsV1;

/*
 Registration of a device; the host copies it during [`crate::HostApiV1::bdev_register`].
 */
typedef struct TenonBdevV1 {
    /*
     Bytes of this struct the writer knows.
     */
    uint32_t size;
    /*
     Properties.
     */
    TenonBdevFlags flags;
    /*
     Geometry and limits.
     */
    struct TenonLimits limits;
    /*
     One [`crate::Op::bit`] per operation this build of the module handles; the host never sends another.
     */
    uint64_t io_types;
    /*
     The [`crate::IoFlags`] this build understands; the host never sends another.
     */
    uint64_t io_flags;
    /*
     Identity; all zero: the host makes one (stable for the same name only if derived by the module).
     */
    uint8_t uuid[16];
    /*
     NVMe Namespace Globally Unique Identifier, or zero.
     */
    uint8_t nguid[16];
    /*
     IEEE EUI-64, or zero.
     */
    uint8_t eui64[8];
    /*
     NUMA node, or -1.
     */
    int32_t numa_node;
    /*
     Number of `aliases`.
     */
    uint32_t alias_count;
    /*
     Unique name: 1–255 bytes, no control characters, no `/`.
     */
    struct TenonStr name;
    /*
     What kind of device, e.g. `Malloc disk`.
     */
    struct TenonStr product;
    /*
     Further unique names, or null.
     */
    const struct TenonStr *aliases;
    /*
     First argument of every callback in `ops`; must stay valid until the destruct token is answered.
     */
    void *ctx;
    /*
     Callbacks; must stay valid for the life of the plugin.
     */
    const struct TenonBdevOpsV1 *ops;
} TenonBdevV1;

/*
 Handle of a block device: index and generation, packed by the host. `0` is never valid.
 */
typedef uint64_t TenonBdevHandle;

/*
 Lifecycle state of a device.
 */
typedef uint32_t TenonBdevState;
/*
 Being registered.
 */
#define TenonBdevState_REGISTERING 0
/*
 Offered to the modules.
 */
#define TenonBdevState_EXAMINING 1
/*
 In service.
 */
#define TenonBdevState_READY 2
/*
 Backing gone, identity kept.
 */
#define TenonBdevState_ABSENT 3
/*
 New I/O bounces; openers have been told.
 */
#define TenonBdevState_ORPHANED 4
/*
 Nobody holds it; the module is destructing it.
 */
#define TenonBdevState_DRAINING 5
/*
 Gone.
 */
#define TenonBdevState_DESTROYED 6

/*
 What a consumer may know about a device; filled by [`crate::HostApiV1::bdev_info`].
 Texts stay valid until the next call into the host from the same thread.
 */
typedef struct TenonBdevInfo {
    /*
     Bytes of this struct; set by the caller, lowered by the host to what it filled.
     */
    uint32_t size;
    /*
     Properties.
     */
    TenonBdevFlags flags;
    /*
     The device.
     */
    TenonBdevHandle bdev;
    /*
     Geometry and limits now.
     */
    struct TenonLimits limits;
    /*
     Operations.
     */
    uint64_t io_types;
    /*
     I/O flags.
     */
    uint64_t io_flags;
    /*
     Identity.
     */
    uint8_t uuid[16];
    /*
     NVMe Namespace Globally Unique Identifier, or zero.
     */
    uint8_t nguid[16];
    /*
     IEEE EUI-64, or zero.
     */
    uint8_t eui64[8];
    /*
     NUMA node, or -1.
     */
    int32_t numa_node;
    /*
     Lifecycle state.
     */
    TenonBdevState state;
    /*
     Unique name.
     */
    struct TenonStr name;
    /*
     What kind of device.
     */
    struct TenonStr product;
    /*
     Module that registered it.
     */
    struct TenonStr module;
} TenonBdevInfo;

/*
 Kind of a device event.
 */
typedef uint32_t TenonBdevEventKind;
/*
 The device goes away: finish or abandon work, put channels, close the descriptor before `deadline_ns`.
 Delivered exactly once per descriptor.
 */
#define TenonBdevEventKind_REMOVE 1
/*
 The capacity is now `value` blocks.
 */
#define TenonBdevEventKind_RESIZE 2
/*
 Works with reduced redundancy or speed.
 */
#define TenonBdevEventKind_DEGRADED 3
/*
 Fully working again.
 */
#define TenonBdevEventKind_HEALTHY 4
/*
 The set of usable paths changed.
 */
#define TenonBdevEventKind_PATH_CHANGED 5
/*
 Writes are refused from now on.
 */
#define TenonBdevEventKind_READ_ONLY 6
/*
 Writes are accepted again.
 */
#define TenonBdevEventKind_WRITABLE 7
/*
 Backing gone; I/O waits until `deadline_ns` (0: no limit).
 */
#define TenonBdevEventKind_ABSENT 8
/*
 Backing back, same identity.
 */
#define TenonBdevEventKind_PRESENT 9
/*
 The device asks for media management (open channel, zoned).
 */
#define TenonBdevEventKind_MEDIA_MANAGEMENT 10

/*
 Why something happened.
 */
typedef uint32_t TenonReason;
/*
 Not stated.
 */
#define TenonReason_UNSPECIFIED 0
/*
 An operator asked.
 */
#define TenonReason_REQUESTED 1
/*
 The hardware, file or network peer disappeared.
 */
#define TenonReason_HOT_REMOVED 2
/*
 A device below went away.
 */
#define TenonReason_BASE_REMOVED 3
/*
 The owning module is being unregistered.
 */
#define TenonReason_MODULE_UNREGISTERED 4
/*
 The host is shutting down.
 */
#define TenonReason_SHUTDOWN 5
/*
 A deadline passed.
 */
#define TenonReason_DEADLINE 6
/*
 Another device came back in its place.
 */
#define TenonReason_IDENTITY_CHANGED 7
/*
 Too many errors.
 */
#define TenonReason_FAILED 8
/*
 A create was rolled back.
 */
#define TenonReason_ROLLED_BACK 9

/*
 An event of a device, delivered on the control thread to each descriptor's callback.
 */
typedef struct TenonBdevEvent {
    /*
     Bytes of this struct the writer knows.
     */
    uint32_t size;
    /*
     What happened.
     */
    TenonBdevEventKind kind;
    /*
     The device.
     */
    TenonBdevHandle bdev;
    /*
     Why.
     */
    TenonReason reason;
    /*
     Reserved, 0.
     */
    uint32_t reserved;
    /*
     Meaning depends on `kind`.
     */
    uint64_t value;
    /*
     Time of [`crate::HostApiV1::now_ns`] by which the receiver must have acted; 0: none.
     */
    uint64_t deadline_ns;
    /*
     Text for people, or empty.
     */
    struct TenonStr detail;
} TenonBdevEvent;

/*
 Kind of a hotplug event.
 */
typedef uint32_t TenonHotplugKind;
/*
 Appeared.
 */
#define TenonHotplugKind_ADD 1
/*
 Vanished.
 */
#define TenonHotplugKind_REMOVE 2
/*
 Size or attributes changed.
 */
#define TenonHotplugKind_CHANGE 3

/*
 Something appeared, vanished or changed outside. Duplicates are allowed: a receiver compares `generation`.
 */
typedef struct TenonHotplugEvent {
    /*
     Bytes of this struct the writer knows.
     */
    uint32_t size;
    /*
     What happened.
     */
    TenonHotplugKind kind;
    /*
     Source: `file`, `pci`, `rdma`, `net`, `nvmf`, `plugin`.
     */
    struct TenonStr subsystem;
    /*
     Object within the source: a path, a PCI address, a device name.
     */
    struct TenonStr id;
    /*
     Grows with each event of the same `id`.
     */
    uint64_t generation;
    /*
     Further facts as a JSON object, or empty.
     */
    struct TenonStr attributes_json;
} TenonHotplugEvent;

/*
 One log line. Texts are borrowed for the call.
 */
typedef struct TenonLogRecord {
    /*
     Bytes of this struct the writer knows.
     */
    uint32_t size;
    /*
     1 error, 2 warn, 3 info, 4 debug, 5 trace.
     */
    uint32_t level;
    /*
     Source line, or 0.
     */
    uint32_t line;
    /*
     Reserved, 0.
     */
    uint32_t reserved;
    /*
     Module path that logs.
     */
    struct TenonStr target;
    /*
     Source file, or empty.
     */
    struct TenonStr file;
    /*
     The message.
     */
    struct TenonStr message;
} TenonLogRecord;

/*
 Behaviour of a poller.
 */
typedef uint32_t TenonPollerFlags;
/*
 Must run in every turn; keeps an adaptive reactor awake.
 */
#define TenonPollerFlags_PURE 0
/*
 Has a wake source of its own (a descriptor, a message, a timer): the reactor may sleep while it is idle.
 */
#define TenonPollerFlags_WAKEABLE 1

/*
 Describes a poller; copied by the host.
 */
typedef struct TenonPollerV1 {
    /*
     Bytes of this struct the writer knows.
     */
    uint32_t size;
    /*
     Behaviour.
     */
    TenonPollerFlags flags;
    /*
     For people, e.g. in `thread_get_pollers`.
     */
    struct TenonStr name;
    /*
     Time between calls in microseconds; 0: every turn.
     */
    uint64_t period_us;
    /*
     Called on the poller's reactor; returns > 0 if it did work.
     */
    int32_t (*callback)(void *arg);
    /*
     WAKEABLE only: arms the wake source before the reactor sleeps and returns > 0 if sleeping is safe, 0 if
     there is work. Optional.
     */
    int32_t (*before_sleep)(void *arg);
    /*
     Argument of both.
     */
    void *arg;
} TenonPollerV1;

/*
 A piece of memory that devices may access.
 */
typedef struct TenonMemoryRegion {
    /*
     First byte.
     */
    void *base;
    /*
     Length in bytes.
     */
    uint64_t len;
    /*
     Never reused within one run.
     */
    uint64_t id;
    /*
     NUMA node, or -1.
     */
    int32_t numa_node;
    /*
     Size of its pages in bytes.
     */
    uint32_t page_size;
} TenonMemoryRegion;

/*
 Kind of a metric.
 */
typedef uint32_t TenonMetricKind;
/*
 Only grows.
 */
#define TenonMetricKind_COUNTER 1
/*
 Goes up and down.
 */
#define TenonMetricKind_GAUGE 2

/*
 Describes a metric of a module; copied by the host.
 */
typedef struct TenonMetricDesc {
    /*
     Bytes of this struct the writer knows.
     */
    uint32_t size;
    /*
     Kind.
     */
    TenonMetricKind kind;
    /*
     `a-z 0-9 _`, with its unit last (`_bytes`, `_seconds`); the host prefixes `tenon_<module>_`.
     */
    struct TenonStr name;
    /*
     One sentence.
     */
    struct TenonStr help;
    /*
     Labels as a JSON object of strings, or empty.
     */
    struct TenonStr labels_json;
} TenonMetricDesc;

/*
 Sizes of the frozen types as the plugin's compiler saw them; compared by the host before anything is called.
 */
typedef struct TenonAbiSizes {
    /*
     `sizeof(BdevIo)`.
     */
    uint16_t bdev_io;
    /*
     `sizeof(IoChannel)`.
     */
    uint16_t io_channel;
    /*
     `sizeof(IoExtV1)`.
     */
    uint16_t io_ext;
    /*
     `sizeof(Limits)`.
     */
    uint16_t limits;
    /*
     `sizeof(BdevEvent)`.
     */
    uint16_t bdev_event;
    /*
     `sizeof(HotplugEvent)`.
     */
    uint16_t hotplug_event;
    /*
     `sizeof(LogRecord)`.
     */
    uint16_t log_record;
    /*
     `sizeof(ErrorV1)`.
     */
    uint16_t error;
} TenonAbiSizes;

/*
 Properties of a module.
 */
typedef uint32_t TenonModuleFlags;
/*
 Nothing special.
 */
#define TenonModuleFlags_NONE 0

/*
 A loaded module, as the host knows it; opaque.
 */
typedef struct TenonHostModule {
    uint8_t _private[0];
} TenonHostModule;

/*
 What happened to a [`MemoryRegion`].
 */
typedef uint32_t TenonBufferEvent;
/*
 New memory: register it with devices before the call returns.
 */
#define TenonBufferEvent_ADD 1
/*
 It will be unmapped after the call: no device may access it any longer.
 */
#define TenonBufferEvent_REMOVE 2

/*
 Hears of memory that comes and goes, on the control thread.
 */
typedef void (*TenonMemoryFn)(void *arg, TenonBufferEvent event, const struct TenonMemoryRegion *region);

/*
 A message, timer or piece of offloaded work.
 */
typedef void (*TenonMessageFn)(void *arg);

/*
 Handle of a poller, timer or watched file descriptor of one reactor. `0` is never valid.
 */
typedef uint64_t TenonReactorHandle;

/*
 Hears that a descriptor is ready; `revents` as in epoll.
 */
typedef void (*TenonFdFn)(void *arg, uint32_t revents);

/*
 How a descriptor is opened.
 */
typedef uint32_t TenonOpenFlags;
/*
 Read only.
 */
#define TenonOpenFlags_READ 0
/*
 Read and write; `-EPERM` if a claim forbids it.
 */
#define TenonOpenFlags_WRITE 1

/*
 Hears of a device's events, on the control thread.
 */
typedef void (*TenonEventFn)(void *arg, const struct TenonBdevEvent *event);

/*
 Handle of an open descriptor. `0` is never valid.
 */
typedef uint64_t TenonDescHandle;

/*
 Kind of a claim; a claim belongs to a descriptor and ends with it.
 */
typedef uint32_t TenonClaimKind;
/*
 One module owns the device; others may only read.
 */
#define TenonClaimKind_EXCL_WRITE 1
/*
 Many readers, the claiming descriptor writes.
 */
#define TenonClaimKind_READ_MANY_WRITE_ONE 2
/*
 Nobody writes.
 */
#define TenonClaimKind_READ_MANY_WRITE_NONE 3
/*
 Many writers that present the same key.
 */
#define TenonClaimKind_READ_MANY_WRITE_SHARED 4

/*
 An answer owed to the host for one examine callback; see [`HostApiV1::examine_done`].
 */
typedef uint64_t TenonExamineToken;

/*
 A module's answer to an examine callback.
 */
typedef uint32_t TenonExamineAnswer;
/*
 Not this module's.
 */
#define TenonExamineAnswer_NOT_MINE 0
/*
 The module has claimed the device.
 */
#define TenonExamineAnswer_CLAIMED 1
/*
 Recognised; more members are needed before anything is built on it.
 */
#define TenonExamineAnswer_WAITING 2
/*
 Recognised but unusable; the host reports the reason.
 */
#define TenonExamineAnswer_FAILED 3

/*
 Handles an RPC method on the control thread and answers `token` now or later.
 */
typedef void (*TenonRpcFn)(void *arg, struct TenonStr params_json, TenonOpToken token);

/*
 Functions of the host. Unless stated otherwise: control thread only. A call from a wrong thread returns
 `-EPERM` (or null/0) and is logged. Functions that return `i32` return 0 or `-errno`.
 */
typedef struct TenonHostApiV1 {
    /*
     Bytes of this table the host offers.
     */
    uint32_t size;
    /*
     The host's [`crate::ABI_MAJOR`].
     */
    uint16_t abi_major;
    /*
     The host's [`crate::ABI_MINOR`].
     */
    uint16_t abi_minor;
    /*
     A further table by name and version, e.g. `nvmf-target` 1; null if not offered. Any thread.
     */
    const void *(*query)(struct TenonStr id, uint32_t version);
    /*
     Logs. Any thread.
     */
    void (*log)(const struct TenonLogRecord *record);
    /*
     Monotonic time in nanoseconds (virtual under test). Any thread.
     */
    uint64_t (*now_ns)(void);
    /*
     Cheap monotonic counter. Any thread.
     */
    uint64_t (*ticks)(void);
    /*
     Frequency of `ticks` in Hz. Any thread.
     */
    uint64_t (*ticks_hz)(void);
    /*
     Zeroed memory that devices may access; null if there is none. `align` is a power of two, `numa_node`
     -1 for any. Any thread; not for the data path.
     */
    void *(*alloc)(size_t len, size_t align, int32_t numa_node);
    /*
     Frees memory of `alloc`; `len` and `align` as given. Any thread.
     */
    void (*free)(void *ptr, size_t len, size_t align);
    /*
     Reports the regions behind `alloc` and the host's buffers: now for those that exist, later as they come
     and go. Control thread; `callback` runs there too. The handle ends the subscription with `memory_unsubscribe`.
     */
    int32_t (*memory_subscribe)(struct TenonHostModule *me, TenonMemoryFn callback, void *arg, uint64_t *out);
    /*
     Ends a subscription.
     */
    int32_t (*memory_unsubscribe)(uint64_t subscription);
    /*
     A buffer of at least `len` bytes from the calling reactor's pool, 4096-aligned; null if none is left.
     */
    void *(*buffer_get)(size_t len);
    /*
     Returns a buffer on the reactor that got it; `len` as given.
     */
    void (*buffer_put)(void *buffer, size_t len);
    /*
     A 64-bit cell the module updates with relaxed atomic operations; owned by the host, never freed.
     Any thread, not for the data path.
     */
    int32_t (*metric_register)(struct TenonHostModule *me, const struct TenonMetricDesc *desc, uint64_t **out);
    /*
     The calling thread's reactor, or null. Any thread.
     */
    struct TenonHostReactor *(*reactor_current)(void);
    /*
     The control reactor. Any thread.
     */
    struct TenonHostReactor *(*reactor_control)(void);
    /*
     Number of data reactors. Any thread.
     */
    uint32_t (*reactor_count)(void);
    /*
     Data reactor `index`, or null. Any thread.
     */
    struct TenonHostReactor *(*reactor_nth)(uint32_t index);
    /*
     Index of a data reactor; `u32::MAX` for the control reactor. Any thread.
     */
    uint32_t (*reactor_index)(struct TenonHostReactor *reactor);
    /*
     Runs `callback(arg)` on `reactor`, in order of sending. Any thread; `-EAGAIN` if its queue is full.
     */
    int32_t (*send)(struct TenonHostReactor *reactor, TenonMessageFn callback, void *arg);
    /*
     Runs `work(arg)` on a worker thread that may block, then `done(arg)` on the calling reactor.
     Any reactor; `-EAGAIN` if the queue of workers is full.
     */
    int32_t (*offload)(TenonMessageFn work, TenonMessageFn done, void *arg);
    /*
     Starts a poller on the calling reactor; `poller` is copied.
     */
    int32_t (*poller_register)(const struct TenonPollerV1 *poller, TenonReactorHandle *out);
    /*
     Stops a poller, on its reactor; allowed inside its own callback.
     */
    int32_t (*poller_unregister)(TenonReactorHandle poller);
    /*
     Pauses (`paused != 0`) or resumes a poller and sets its period, on its reactor.
     */
    int32_t (*poller_set)(TenonReactorHandle poller, uint64_t period_us, uint32_t paused);
    /*
     Calls `callback(arg)` once on the calling reactor, `delay_ns` from now.
     */
    int32_t (*timer_start)(uint64_t delay_ns, TenonMessageFn callback, void *arg, TenonReactorHandle *out);
    /*
     Cancels a timer, on its reactor; `-ENOENT` if it has fired.
     */
    int32_t (*timer_cancel)(TenonReactorHandle timer);
    /*
     Calls `callback(arg, revents)` on the calling reactor while `fd` is ready (level-triggered; `events` and
     `revents` as in epoll). The caller keeps `fd` open until `fd_unregister`.
     */
    int32_t (*fd_register)(int32_t fd, uint32_t events, TenonFdFn callback, void *arg, TenonReactorHandle *out);
    /*
     Changes the events of a watched descriptor, on its reactor.
     */
    int32_t (*fd_modify)(TenonReactorHandle fd, uint32_t events);
    /*
     Ends the watch, on its reactor; no callback after it returns.
     */
    int32_t (*fd_unregister)(TenonReactorHandle fd);
    /*
     Registers a device and starts its examination. `op` is the token of the create this belongs to, or
     `OpToken(0)`; the create is answered after the examination. `-EEXIST` if a name or UUID is taken;
     `-ETIMEDOUT` if the client of the create has been told that it did not end in time: the module takes back
     what it did, as for any other error.
     */
    int32_t (*bdev_register)(struct TenonHostModule *me,
                             const struct TenonBdevV1 *bdev,
                             TenonOpToken op,
                             TenonBdevHandle *out);
    /*
     Starts the removal of a device of this module; its `destruct` is called at the end. Idempotent.
     */
    int32_t (*bdev_unregister)(TenonBdevHandle bdev, TenonReason reason);
    /*
     Sets the capacity; openers hear of it after the gate obeys the new size on every reactor.
     */
    int32_t (*bdev_resize)(TenonBdevHandle bdev, uint64_t num_blocks);
    /*
     Publishes an event of a device of this module to its openers (DEGRADED, HEALTHY, PATH_CHANGED,
     READ_ONLY, WRITABLE, MEDIA_MANAGEMENT).
     */
    int32_t (*bdev_publish)(TenonBdevHandle bdev, const struct TenonBdevEvent *event);
    /*
     Backing gone: I/O waits in the gate for `deadline_ms` (0: no limit), then the device is removed.
     */
    int32_t (*bdev_set_absent)(TenonBdevHandle bdev, uint64_t deadline_ms);
    /*
     Backing back with the same identity: waiting I/O continues.
     */
    int32_t (*bdev_set_present)(TenonBdevHandle bdev);
    /*
     The device of that name, alias or UUID, also while it is being examined; `BdevHandle(0)` if there is none.
     */
    TenonBdevHandle (*bdev_find)(struct TenonStr name);
    /*
     Opens a device. `on_event` runs on the control thread; after REMOVE the owner of the descriptor must
     put its channels and close it. `-ENODEV` if it is gone or going, or still being examined and not offered to
     this module; `-EPERM` if a claim forbids it.
     */
    int32_t (*bdev_open)(struct TenonHostModule *me,
                         TenonBdevHandle bdev,
                         TenonOpenFlags flags,
                         TenonEventFn on_event,
                         void *arg,
                         TenonDescHandle *out);
    /*
     Closes a descriptor and releases its claim. Its channels must have been put.
     */
    int32_t (*bdev_close)(TenonDescHandle desc);
    /*
     Claims the device for this descriptor; `key` only for READ_MANY_WRITE_SHARED. `-EPERM` if another claim forbids it.
     */
    int32_t (*bdev_claim)(TenonDescHandle desc, TenonClaimKind kind, uint64_t key);
    /*
     Fills `info` (whose `size` the caller has set).
     */
    int32_t (*bdev_info)(TenonBdevHandle bdev, struct TenonBdevInfo *info);
    /*
     The descriptor's channel on the calling reactor, opened on first use and counted; null if the device is
     gone, its module failed to open it, or memory is short. Any reactor.
     */
    struct TenonIoChannel *(*channel_get)(TenonDescHandle desc);
    /*
     Returns one `channel_get`, on the same reactor, with no I/O outstanding on it.
     */
    void (*channel_put)(struct TenonIoChannel *ch);
    /*
     Answers an [`OpToken`] exactly once. `error` null: success with `result_json` (empty: `true`).
     */
    void (*op_done)(TenonOpToken token, struct TenonStr result_json, const struct TenonErrorV1 *error);
    /*
     Answers an [`ExamineToken`] exactly once; `reason` for WAITING and FAILED.
     */
    void (*examine_done)(TenonExamineToken token, TenonExamineAnswer answer, struct TenonStr reason);
    /*
     Adds a notification for `notify_get_notifications`.
     */
    int32_t (*notify)(struct TenonHostModule *me, struct TenonStr kind, struct TenonStr context);
    /*
     Adds an RPC method: `handler` runs on the control thread and answers `token`. Removed with the module.
     `-EEXIST` if the method exists.
     */
    int32_t (*rpc_register)(struct TenonHostModule *me, struct TenonStr method, TenonRpcFn handler, void *arg);
    /*
     Publishes a hotplug event to every module.
     */
    int32_t (*hotplug_publish)(struct TenonHostModule *me, const struct TenonHotplugEvent *event);
    /*
     Asks the host's watcher to publish events of `id` in `subsystem` (`file`: an absolute path, which need
     not exist). Counted.
     */
    int32_t (*hotplug_watch)(struct TenonHostModule *me, struct TenonStr subsystem, struct TenonStr id);
    /*
     Undoes one `hotplug_watch`.
     */
    int32_t (*hotplug_unwatch)(struct TenonHostModule *me, struct TenonStr subsystem, struct TenonStr id);
} TenonHostApiV1;

/*
 Callbacks of a module. Unless stated otherwise they run on the control thread, one at a time, must not
 block, and may call every function of [`HostApiV1`]. Optional callbacks may be null.

 Order: `init` → `init_complete` → anything → `quiesce` → (devices are removed) → `fini`; nothing is called
 after `fini` was answered. A module whose `init` failed gets no further call.
 */
typedef struct TenonModuleOpsV1 {
    /*
     Bytes of this table the plugin knows.
     */
    uint32_t size;
    /*
     Properties.
     */
    TenonModuleFlags flags;
    /*
     First call, on a thread of its own that may block until the host's deadline (then the module is failed
     and never called again). `host` and `me` stay valid for the life of the process. `config_json` is the
     module's table of the configuration, `{}` if absent. Only `log`, `query`, `now_ns`, `ticks`, `alloc` and
     `metric_register` of the host may be called. Returns 0, or `-errno` with a text in `err` (at most
     `err_len` bytes with its NUL).
     */
    int32_t (*init)(const struct TenonHostApiV1 *host,
                    struct TenonHostModule *me,
                    struct TenonStr config_json,
                    char *err,
                    size_t err_len);
    /*
     The module is part of the host now: register methods, pollers, watches. Optional.
     */
    void (*init_complete)(void);
    /*
     New module-wide options at run time, same shape as `config_json`. Answer `token`. Optional.
     */
    void (*configure)(struct TenonStr params_json, TenonOpToken token);
    /*
     Creates what `params_json` (one `[[bdev]]` table or the RPC's parameters) describes: open, claim,
     register, then answer `token` with the result JSON. The host replies to its client after everything
     registered under `token` is examined. On error the module has undone its part; the host removes what
     was registered under `token`. `-ENODEV` with the missing device's name means "not yet". Optional.
     */
    void (*create)(struct TenonStr params_json, TenonOpToken token);
    /*
     Changes the device `name` to `params_json` in place, or answers `-ENOTSUP`. Optional.
     */
    void (*update)(struct TenonStr name, struct TenonStr params_json, TenonOpToken token);
    /*
     Deletes `name`; absent: the host removes the device of that name. Optional.
     */
    void (*delete_)(struct TenonStr name, TenonOpToken token);
    /*
     A new device, or one older than this module, before any I/O; the module's own devices as well. Answer
     `token` from inside the call. Optional.
     */
    void (*examine_config)(TenonBdevHandle bdev, struct TenonStr name, TenonExamineToken token);
    /*
     As `examine_config`, but may do I/O and answer later, within the host's deadline. Optional.
     */
    void (*examine_disk)(TenonBdevHandle bdev, struct TenonStr name, TenonExamineToken token);
    /*
     Something appeared or vanished; every module hears of everything. Optional.
     */
    void (*hotplug)(const struct TenonHotplugEvent *event);
    /*
     No new devices from now on: stop discovering. Its devices are removed next. Optional.
     */
    void (*quiesce)(void);
    /*
     Last call: release everything and answer `token`, within the host's deadline.
     */
    void (*fini)(TenonOpToken token);
    /*
     JSON Schema (draft 2020-12) of `create`'s parameters under `properties.bdev` and of the module table
     under `properties.module`; static text. May be called before `init`. Any thread. Optional.
     */
    struct TenonStr (*schema)(void);
    /*
     Checks `create` parameters without creating anything and without a running module: may be called before
     `init`. Returns 0, or `-errno` with a text in `err` as in `init`. Any thread. Optional.
     */
    int32_t (*validate)(struct TenonStr params_json, char *err, size_t err_len);
    /*
     New log level: 0 off, 1 error, 2 warn, 3 info, 4 debug, 5 trace. Any thread. Optional.
     */
    void (*set_log_level)(uint32_t level);
    /*
     A further table by name and version, e.g. `nvmf-transport` 1; null if not offered. Any thread. Optional.
     */
    const void *(*query)(struct TenonStr id, uint32_t version);
    /*
     Checks the module's table of the configuration as `validate` checks `create` parameters. Any thread. Optional.
     */
    int32_t (*validate_config)(struct TenonStr config_json, char *err, size_t err_len);
    /*
     Writes the options in force as one JSON object of the shape of `config_json`; what has its default may be
     left out. The host asks after each method of the module, saves the answer, and gives it to a module that
     takes this one's place. Absent, or writing nothing: `config_json` and `configure` alone say what is in
     force. Optional.
     */
    void (*config_json)(const struct TenonJsonSink *sink);
} TenonModuleOpsV1;

/*
 Descriptor of a plugin: what `tenon_plugin_v1` returns. Static in the plugin.
 */
typedef struct TenonPluginDescV1 {
    /*
     [`crate::MAGIC`].
     */
    uint64_t magic;
    /*
     Bytes of this struct the plugin knows.
     */
    uint32_t size;
    /*
     [`crate::ABI_MAJOR`] the plugin was built with.
     */
    uint16_t abi_major;
    /*
     [`crate::ABI_MINOR`] the plugin was built with.
     */
    uint16_t abi_minor;
    /*
     Sizes of the frozen types.
     */
    struct TenonAbiSizes sizes;
    /*
     Module name: 1–63 bytes of `a-z 0-9 _ -`.
     */
    struct TenonStr name;
    /*
     Version of the module, e.g. `1.2.3`.
     */
    struct TenonStr version;
    /*
     Compiler, for people.
     */
    struct TenonStr built_with;
    /*
     Callbacks.
     */
    const struct TenonModuleOpsV1 *ops;
} TenonPluginDescV1;

/*
 What a module may ask about an operation of its own.
 */
typedef struct TenonOperationTableV1 {
    /*
     Bytes of this table the writer knows.
     */
    uint32_t size;
    /*
     Reserved, 0.
     */
    uint32_t flags;
    /*
     1 if the host would repeat the operation of `token` once a device of that name is in service, should the
     operation fail with `-ENODEV` and that name now: the device is being created or examined. Else 0. For a
     module that can begin without the device. Control thread.
     */
    int32_t (*base_is_coming)(TenonOpToken token, struct TenonStr name);
} TenonOperationTableV1;

/*
 Keys that the operator has given names (`keyring_file_add_key`, `[[key]]`).
 */
typedef struct TenonKeyringTableV1 {
    /*
     Bytes of this table the host offers.
     */
    uint32_t size;
    /*
     Reserved, 0.
     */
    uint32_t flags;
    /*
     Control thread: writes the key of that name to `out`, in its text form (`DHHC-1:…:` or
     `NVMeTLSkey-1:…:`), and returns its length; or `-ENOENT` if there is none, `-ERANGE` if it is longer than
     `out_len`. The key cannot be removed until its users have released it as often as they acquired it. A
     module keeps the text no longer than it needs it, wipes it, and never logs it.
     */
    int32_t (*acquire)(struct TenonHostModule *me, struct TenonStr name, uint8_t *out, size_t out_len);
    /*
     Control thread: undoes one `acquire` that gave a key.
     */
    void (*release)(struct TenonHostModule *me, struct TenonStr name);
} TenonKeyringTableV1;

/*
 Keys of a memory region on one device.
 */
typedef struct TenonMemoryKeys {
    /*
     For local access.
     */
    uint64_t local_key;
    /*
     For a peer's access.
     */
    uint64_t remote_key;
} TenonMemoryKeys;

/*
 A transport instance of the target core; opaque to the transport.
 */
typedef struct TenonHostTransport {
    uint8_t _private[0];
} TenonHostTransport;

/*
 Address of one end of a connection. Texts are borrowed for the call.
 */
typedef struct TenonTransportId {
    /*
     Bytes of this struct the writer knows.
     */
    uint32_t size;
    /*
     Transport type (NVMe-oF discovery log value: 1 RDMA, 2 FC, 3 TCP, 254 loop).
     */
    uint8_t trtype;
    /*
     Address family (NVMe-oF discovery log value: 1 IPv4, 2 IPv6, 254 loop).
     */
    uint8_t adrfam;
    /*
     Reserved, 0.
     */
    uint16_t reserved;
    /*
     Transport address.
     */
    struct TenonStr traddr;
    /*
     Transport service identifier.
     */
    struct TenonStr trsvcid;
    /*
     Subsystem NQN, or empty.
     */
    struct TenonStr subnqn;
} TenonTransportId;

/*
 What a transport tells about a new connection.
 */
typedef struct TenonConnectionInfo {
    /*
     Bytes of this struct the writer knows.
     */
    uint32_t size;
    /*
     Most commands in flight.
     */
    uint32_t queue_depth;
    /*
     Largest in-capsule data in bytes.
     */
    uint32_t in_capsule_size;
    /*
     1 if the channel is secured (TLS).
     */
    uint32_t secure;
    /*
     The peer.
     */
    struct TenonTransportId peer;
    /*
     This side.
     */
    struct TenonTransportId local;
    /*
     Listener that accepted it, as given to `listen`.
     */
    uint64_t listener;
    /*
     TLS pre-shared key identity, or empty.
     */
    struct TenonStr psk_identity;
} TenonConnectionInfo;

/*
 A queue pair of the target core; opaque to the transport.
 */
typedef struct TenonHostQueuePair {
    uint8_t _private[0];
} TenonHostQueuePair;

/*
 Why a connection ended or is to end.
 */
typedef uint32_t TenonCloseReason;
/*
 The local side asked.
 */
#define TenonCloseReason_LOCAL 1
/*
 The peer closed or reset the connection.
 */
#define TenonCloseReason_PEER 2
/*
 The peer broke the protocol.
 */
#define TenonCloseReason_PROTOCOL 3
/*
 The peer was silent too long (keep alive, handshake, idle).
 */
#define TenonCloseReason_TIMEOUT 4
/*
 The device below went away.
 */
#define TenonCloseReason_DEVICE 5
/*
 Out of memory or of connections.
 */
#define TenonCloseReason_RESOURCES 6
/*
 Authentication or TLS failed.
 */
#define TenonCloseReason_SECURITY 7
/*
 Refused: nobody listens, or the peer rejected the connection.
 */
#define TenonCloseReason_REFUSED 8
/*
 The network cannot reach the peer.
 */
#define TenonCloseReason_UNREACHABLE 9

/*
 What `request_begin` decided.
 */
typedef uint32_t TenonDisposition;
/*
 Fill `iovs` with the peer's data, then call `request_execute`.
 */
#define TenonDisposition_RECEIVE 1
/*
 Call `request_execute` now.
 */
#define TenonDisposition_EXECUTE 2
/*
 `cqe` holds the answer (an error): send it, then `request_release`.
 */
#define TenonDisposition_RESPOND 3
/*
 No buffer now; the target core calls `TargetOpsV1::request_buffers` later.
 */
#define TenonDisposition_WAIT 4

/*
 Which way a command's data travels, seen from the NVMe host.
 */
typedef uint8_t TenonDirection;
/*
 No data.
 */
#define TenonDirection_NONE 0
/*
 NVMe host to controller.
 */
#define TenonDirection_TO_CONTROLLER 1
/*
 Controller to NVMe host.
 */
#define TenonDirection_TO_HOST 2

/*
 One NVMe command at the target, embedded at the start of the transport's own request.
 */
typedef struct TENON_ALIGNED(64) TenonTargetRequest {
    /*
     Submission queue entry as received.
     */
    uint8_t sqe[64];
    /*
     Completion queue entry to send; filled by the target core.
     */
    uint8_t cqe[16];
    /*
     Payload memory: chosen by `request_begin` (data to the controller) or set by the target core before
     `request_complete` (data to the host, possibly lent).
     */
    struct TenonIoVec *iovs;
    /*
     Pieces in `iovs`.
     */
    uint32_t iovcnt;
    /*
     Payload in bytes.
     */
    uint32_t length;
    /*
     Which way the payload travels.
     */
    TenonDirection direction;
    /*
     Reserved, 0.
     */
    uint8_t reserved[3];
    /*
     Bytes of payload that arrived in the capsule, at `capsule_data`; set by the transport.
     */
    uint32_t capsule_length;
    /*
     In-capsule data, or null; set by the transport.
     */
    void *capsule_data;
    /*
     The queue pair; set by the transport.
     */
    struct TenonHostQueuePair *queue_pair;
    /*
     For whoever holds the request.
     */
    struct TenonTargetRequest *link;
    /*
     Room for a list of one.
     */
    struct TenonIoVec inline_iov;
    /*
     Local memory key of `iovs`, if the transport needs one and the memory is registered; else 0.
     */
    uint64_t memory_key;
    /*
     The target core's, between `request_begin` and `request_release`.
     */
    void *host[3];
} TenonTargetRequest;

/*
 State of a device below a transport, e.g. an RDMA adapter or a network interface.
 */
typedef uint32_t TenonDeviceState;
/*
 Usable on every poll group.
 */
#define TenonDeviceState_READY 1
/*
 Present but not usable everywhere; the transport retries.
 */
#define TenonDeviceState_DEGRADED 2
/*
 Being removed; its connections drain.
 */
#define TenonDeviceState_REMOVING 3
/*
 Gone.
 */
#define TenonDeviceState_GONE 4

/*
 A device came, went or changed state. Duplicates are allowed.
 */
typedef struct TenonDeviceEvent {
    /*
     Bytes of this struct the writer knows.
     */
    uint32_t size;
    /*
     New state.
     */
    TenonDeviceState state;
    /*
     Name of the device.
     */
    struct TenonStr name;
    /*
     Grows with every incarnation of the same name.
     */
    uint64_t generation;
    /*
     For REMOVING: time of `now_ns` by which connections are gone; 0: none.
     */
    uint64_t deadline_ns;
    /*
     Text for people, or empty.
     */
    struct TenonStr reason;
} TenonDeviceEvent;

/*
 What the target core offers a transport.
 */
typedef struct TenonNvmfTargetApiV1 {
    /*
     Bytes of this table the host offers.
     */
    uint32_t size;
    /*
     Reserved, 0.
     */
    uint32_t flags;
    /*
     Any reactor: a connection was accepted by `listener`; the target core has `connection_adopt` called on
     the reactor it chooses, or refuses with `-errno` (`-ENOSPC`: too many) and the transport drops it.
     */
    int32_t (*connection_new)(struct TenonHostTransport *host, uint64_t listener, void *connection);
    /*
     On the connection's reactor: the transport's own handshake is done; gives the queue pair.
     */
    int32_t (*queue_pair_open)(struct TenonHostTransport *host,
                               void *connection,
                               const struct TenonConnectionInfo *info,
                               struct TenonHostQueuePair **out);
    /*
     On its reactor, once: no more commands will come. The target core ends what is executing, then calls
     `connection_free`.
     */
    void (*queue_pair_closed)(struct TenonHostQueuePair *queue_pair, TenonCloseReason reason);
    /*
     Starts a command whose `sqe`, capsule data and `queue_pair` are set. Not from inside another call for the
     same connection.
     */
    TenonDisposition (*request_begin)(struct TenonTargetRequest *request);
    /*
     Runs a command whose data is complete.
     */
    void (*request_execute)(struct TenonTargetRequest *request);
    /*
     Ends a command: its completion was sent, or its connection is closing.
     */
    void (*request_release)(struct TenonTargetRequest *request);
    /*
     Control thread: a device came, went or changed.
     */
    void (*device_event)(struct TenonHostTransport *host, const struct TenonDeviceEvent *event);
    /*
     Any thread: copies the pre-shared key of `identity` (at most `key_len` bytes); returns its length or
     `-ENOENT`. The caller wipes `key` after use.
     */
    int32_t (*psk_lookup)(struct TenonHostTransport *host,
                          uint64_t listener,
                          struct TenonStr identity,
                          uint8_t *key,
                          size_t key_len);
    /*
     Ends a command that cannot be executed: its data arrived damaged, or cannot arrive. Instead of
     `request_execute`, for a request that the transport has after RECEIVE, EXECUTE or `request_buffers`.
     `status` is the status field of the completion queue entry (bits 31:16 of its dword 3, phase tag 0), e.g.
     Transient Transport Error; success is taken for Internal Error. `request_complete` follows, from inside.
     */
    void (*request_fail)(struct TenonTargetRequest *request, uint16_t status);
    /*
     On its reactor, once: an adopted connection ended before `queue_pair_open`, and is freed by the transport.
     */
    void (*connection_dropped)(struct TenonHostTransport *host, void *connection);
} TenonNvmfTargetApiV1;

/*
 What a transport can do.
 */
typedef uint32_t TenonTransportFlags;
/*
 Data is placed by remote keys (keyed SGLs) rather than in the stream.
 */
#define TenonTransportFlags_KEYED_SGL 1
/*
 Commands may carry data in their capsule.
 */
#define TenonTransportFlags_IN_CAPSULE_DATA (1 << 1)
/*
 Sends from any memory; otherwise payloads must lie in registered regions.
 */
#define TenonTransportFlags_ANY_MEMORY (1 << 2)
/*
 Can secure a channel (TLS).
 */
#define TenonTransportFlags_SECURE_CHANNEL (1 << 3)
/*
 Secures channels of its initiator role by the key of [`initiator::ConnectParams`].
 */
#define TenonTransportFlags_SECURE_INITIATOR (1 << 5)
/*
 Reads may be answered from lent memory.
 */
#define TenonTransportFlags_LENT_MEMORY (1 << 4)

/*
 Listener facts for the discovery log.
 */
typedef struct TenonDiscoveryInfo {
    /*
     Transport requirements (TREQ).
     */
    uint8_t treq;
    /*
     Reserved, 0.
     */
    uint8_t reserved[7];
    /*
     Transport-specific address subtype (TSAS).
     */
    uint8_t tsas[256];
} TenonDiscoveryInfo;

/*
 Target role of a transport. Control thread unless stated otherwise.
 */
typedef struct TenonTargetOpsV1 {
    /*
     Bytes of this table the plugin knows.
     */
    uint32_t size;
    /*
     Reserved, 0.
     */
    uint32_t flags;
    /*
     Makes an instance from `options_json`; stores it in `out`, then answers `token`. `api` and `host` stay
     valid until `destroy` is answered.
     */
    void (*create)(struct TenonHostTransport *host,
                   const struct TenonNvmfTargetApiV1 *api,
                   struct TenonStr options_json,
                   TenonOpToken token,
                   void **out);
    /*
     Ends an instance; its listeners and connections are gone already.
     */
    void (*destroy)(void *transport, TenonOpToken token);
    /*
     Writes the effective options as one JSON object.
     */
    void (*options_json)(void *transport, const struct TenonJsonSink *sink);
    /*
     Writes statistics of the poll group on the calling reactor as one JSON object. Any reactor.
     */
    void (*statistics_json)(void *group, const struct TenonJsonSink *sink);
    /*
     Starts accepting at `address`; `listener` names it from now on. Answers `token` when it listens.
     */
    void (*listen)(void *transport,
                   uint64_t listener,
                   const struct TenonTransportId *address,
                   struct TenonStr options_json,
                   TenonOpToken token);
    /*
     Stops accepting at once; its connections live on. Answers `token`.
     */
    void (*stop_listen)(void *transport, uint64_t listener, TenonOpToken token);
    /*
     Fills the discovery log facts of a listener.
     */
    int32_t (*listener_discover)(void *transport, uint64_t listener, struct TenonDiscoveryInfo *out);
    /*
     On a reactor: makes this instance's poll group there; stores it in `out`.
     */
    int32_t (*poll_group_create)(void *transport, void **out);
    /*
     On its reactor, when its connections are gone.
     */
    void (*poll_group_destroy)(void *group);
    /*
     On `group`'s reactor: takes over a connection announced by `connection_new`. If it fails, the transport has
     freed the connection.
     */
    int32_t (*connection_adopt)(void *group, void *connection);
    /*
     On its reactor: ends a connection; nothing is received from now on, what is completed is still sent. Ends
     with `queue_pair_closed`, at the latest at `drain_by_ns`. Idempotent.
     */
    void (*connection_close)(void *connection, TenonCloseReason reason, uint64_t drain_by_ns);
    /*
     On its reactor: every request of the connection is released; free it.
     */
    void (*connection_free)(void *connection);
    /*
     On its reactor: send payload (if to the host) and completion, then call `request_release`.
     */
    void (*request_complete)(struct TenonTargetRequest *request);
    /*
     On its reactor: buffers for a request that got [`Disposition::WAIT`] are in `iovs` now.
     */
    void (*request_buffers)(struct TenonTargetRequest *request);
} TenonTargetOpsV1;

/*
 How to connect. Copied by the transport.
 */
typedef struct TenonConnectParams {
    /*
     Bytes of this struct the writer knows.
     */
    uint32_t size;
    /*
     Queue identifier: 0 for the admin queue.
     */
    uint32_t qid;
    /*
     Entries of the submission queue.
     */
    uint32_t queue_size;
    /*
     Controller identifier for an I/O queue, else `0xffff`.
     */
    uint32_t cntlid;
    /*
     The peer.
     */
    struct TenonTransportId peer;
    /*
     Local address to bind, or empty texts.
     */
    struct TenonTransportId local;
    /*
     NQN of this host.
     */
    struct TenonStr hostnqn;
    /*
     Transport options as one JSON object (digests, priority, …).
     */
    struct TenonStr options_json;
    /*
     Time of `now_ns` by which CONNECTED or CLOSED is reported.
     */
    uint64_t deadline_ns;
    /*
     Identity of `psk`, as the peer knows it; empty: the channel is not secured.
     */
    struct TenonStr psk_identity;
    /*
     TLS pre-shared key of the channel: `psk_len` bytes, borrowed for the call. Given only to transports with
     [`super::TransportFlags::SECURE_INITIATOR`], which refuse a channel that they cannot secure with it.
     */
    const uint8_t *psk;
    /*
     Length of `psk` in bytes.
     */
    size_t psk_len;
} TenonConnectParams;

/*
 Kind of a connection event.
 */
typedef uint32_t TenonConnectionEventKind;
/*
 Ready for capsules.
 */
#define TenonConnectionEventKind_CONNECTED 1
/*
 Unusable from now on; outstanding requests are being completed. At most once.
 */
#define TenonConnectionEventKind_CLOSING 2
/*
 Every request is completed and every resource released. Exactly once, last.
 */
#define TenonConnectionEventKind_CLOSED 3

/*
 What happened to a connection.
 */
typedef struct TenonConnectionEvent {
    /*
     Bytes of this struct the writer knows.
     */
    uint32_t size;
    /*
     What.
     */
    TenonConnectionEventKind kind;
    /*
     Why, for CLOSING and CLOSED.
     */
    TenonCloseReason reason;
    /*
     `-errno`, or 0.
     */
    int32_t status;
    /*
     CONNECTED: most commands in flight the peer accepts.
     */
    uint32_t queue_depth;
    /*
     CONNECTED: largest in-capsule data in bytes.
     */
    uint32_t in_capsule_size;
    /*
     Text for people, or empty.
     */
    struct TenonStr detail;
} TenonConnectionEvent;

/*
 Hears of a connection's events, on its reactor.
 */
typedef void (*TenonConnectionFn)(void *arg, const struct TenonConnectionEvent *event);

/*
 One NVMe command at the initiator, allocated by the module with `InitiatorOpsV1::request_ctx_size` bytes
 of transport context behind it.
 */
typedef struct TENON_ALIGNED(64) TenonInitiatorRequest {
    /*
     Submission queue entry; the transport fills CID-independent transport fields (SGL).
     */
    uint8_t sqe[64];
    /*
     Completion queue entry; valid in `done` if `status` is 0.
     */
    uint8_t cqe[16];
    /*
     Payload.
     */
    struct TenonIoVec *iovs;
    /*
     Pieces in `iovs`.
     */
    uint32_t iovcnt;
    /*
     Payload in bytes.
     */
    uint32_t length;
    /*
     Which way the payload travels.
     */
    TenonDirection direction;
    /*
     Reserved, 0.
     */
    uint8_t reserved[3];
    /*
     0 if `cqe` arrived, else `-errno` of the transport (`-ECANCELED` after a disconnect).
     */
    int32_t status;
    /*
     Called exactly once, on the connection's reactor.
     */
    void (*done)(struct TenonInitiatorRequest *request, void *arg);
    /*
     Second argument of `done`.
     */
    void *done_arg;
    /*
     The connection; set by `submit`.
     */
    void *connection;
    /*
     For whoever holds the request.
     */
    struct TenonInitiatorRequest *link;
    /*
     Keys of the payload's region, if the transport needs them.
     */
    struct TenonMemoryKeys keys;
    /*
     The transport's, while submitted.
     */
    void *transport[2];
} TenonInitiatorRequest;

/*
 Hears of a transport's devices, on the control thread.
 */
typedef void (*TenonDeviceFn)(void *arg, const struct TenonDeviceEvent *event);

/*
 Initiator role of a transport. On the poll group's reactor unless stated otherwise; nothing blocks.
 */
typedef struct TenonInitiatorOpsV1 {
    /*
     Bytes of this table the plugin knows.
     */
    uint32_t size;
    /*
     Bytes of transport context behind each [`InitiatorRequest`], multiple of 64.
     */
    uint32_t request_ctx_size;
    /*
     Makes the initiator's poll group on the calling reactor.
     */
    int32_t (*poll_group_create)(struct TenonStr options_json, void **out);
    /*
     Ends it; its connections are CLOSED.
     */
    void (*poll_group_destroy)(void *group);
    /*
     Starts a connection; `on_event` follows. Connections of one group progress concurrently.
     */
    int32_t (*connect)(void *group,
                       const struct TenonConnectParams *params,
                       TenonConnectionFn on_event,
                       void *arg,
                       void **out);
    /*
     Ends a connection: CLOSING, every request completed, CLOSED, at the latest at `drain_by_ns`. Idempotent.
     */
    void (*disconnect)(void *connection, TenonCloseReason reason, uint64_t drain_by_ns);
    /*
     After CLOSED: frees the connection.
     */
    void (*connection_free)(void *connection);
    /*
     Sends a command. Refused with `-EAGAIN` if the queue is full, `-ENOTCONN` if closing.
     */
    int32_t (*submit)(void *connection, struct TenonInitiatorRequest *request);
    /*
     Sends what `submit` has gathered; called once after a batch.
     */
    void (*flush)(void *connection);
    /*
     Registers memory with the device of `group`; keys into `out`. Only for transports without ANY_MEMORY.
     */
    int32_t (*memory_register)(void *group,
                               const struct TenonMemoryRegion *region,
                               struct TenonMemoryKeys *out);
    /*
     Undoes `memory_register`.
     */
    void (*memory_unregister)(void *group, const struct TenonMemoryRegion *region);
    /*
     Control thread: reports devices now and as they come and go. Optional.
     */
    int32_t (*device_subscribe)(TenonDeviceFn on_event, void *arg);
    /*
     Writes the group's statistics as one JSON object.
     */
    void (*statistics_json)(void *group, const struct TenonJsonSink *sink);
} TenonInitiatorOpsV1;

/*
 What a transport plugin offers. Static in the plugin.
 */
typedef struct TenonTransportV1 {
    /*
     Bytes of this table the plugin knows.
     */
    uint32_t size;
    /*
     Capabilities.
     */
    TenonTransportFlags flags;
    /*
     Name as in `trtype`: `TCP`, `RDMA`, `LOOP`.
     */
    struct TenonStr name;
    /*
     Transport type, see [`TransportId::trtype`].
     */
    uint32_t trtype;
    /*
     Reserved, 0.
     */
    uint32_t reserved;
    /*
     Target role, or null.
     */
    const struct TenonTargetOpsV1 *target;
    /*
     Initiator role, or null.
     */
    const struct TenonInitiatorOpsV1 *initiator;
} TenonTransportV1;

/*
 Gets a transport asked for by `acquire`, on the control thread.

 `transport` is null if there is none; `reason` says why then, and is borrowed for the call.
 */
typedef void (*TenonTransportFn)(void *arg, const struct TenonTransportV1 *transport, struct TenonStr reason);

/*
 The host's table of transports.
 */
typedef struct TenonTransportTableApiV2 {
    /*
     Bytes of this table the host offers.
     */
    uint32_t size;
    /*
     Reserved, 0.
     */
    uint32_t flags;
    /*
     Control thread: asks for the transport of that name (`TCP`, in any case), whose plugin is loaded if
     needed. `done` hears of it exactly once, later and never from inside this call, unless this returns
     `-errno`. The transport stays valid for the life of the process; its user is counted until `release`.
     */
    int32_t (*acquire)(struct TenonHostModule *me, struct TenonStr name, TenonTransportFn done, void *arg);
    /*
     Control thread: undoes one `acquire` that gave a transport.
     */
    void (*release)(struct TenonHostModule *me, const struct TenonTransportV1 *transport);
} TenonTransportTableApiV2;

#endif  /* TENON_PLUGIN_H */

#ifdef __cplusplus
extern "C" {
#endif

/* The one symbol a plugin exports; the descriptor is static in the plugin. */
__attribute__((visibility("default"))) const TenonPluginDescV1 *tenon_plugin_v1(void);

#ifdef __cplusplus
}
#endif

/* Borrows a NUL-terminated string for the duration of a call. */
static inline TenonStr tenon_str(const char *text)
{
    TenonStr str = {(const uint8_t *)text, strlen(text)};
    return str;
}

/* Gives io to ch: on the reactor of ch, io idle, filled in and with ch->io_ctx_size bytes of context behind it. */
static inline void tenon_submit(TenonIoChannel *ch, TenonBdevIo *io)
{
    io->ch = ch;
    ch->ops->submit(ch, io);
}

/* Finishes io: on the reactor of its channel, exactly once per submission, by the module it was submitted to. */
static inline void tenon_complete(TenonBdevIo *io, TenonIoStatus status)
{
    TenonIoChannel *ch = io->ch;
    if (io->state != TenonIoState_SUBMITTED) {
        ch->faults++;
        return;
    }
    io->status = status;
    io->state = TenonIoState_IDLE;
    if ((io->flags & TenonIoFlags_LENT) == 0)
        ch->outstanding--;
    if (status == TenonIoStatus_NOMEM && ch->retry) {
        ch->retry(ch, io);
        return;
    }
    if (io->done)
        io->done(io, io->done_arg);
}

/* True if a table whose `size` field was filled in by the other side reaches `field`. */
#define TENON_REACHES(table, field) \
    ((table)->size >= (size_t)((const char *)(&(table)->field + 1) - (const char *)(table)))

/*
 * Describes the plugin without loading it: put it once into the plugin, with string literals.
 * `provides` and `rpc` are comma lists, e.g. TENON_PLUGIN_METADATA("mydisk", "1.0.0", "bdev", "");
 */
#define TENON_PLUGIN_METADATA(name, version, provides, rpc)                                                  \
    __attribute__((used, section(".tenon_plugin"))) static const char tenon_plugin_metadata[] =              \
        "abi=" TENON_STRINGIFY(TENON_ABI_MAJOR) "." TENON_STRINGIFY(TENON_ABI_MINOR) "\0name=" name         \
        "\0version=" version "\0provides=" provides "\0rpc=" rpc
#define TENON_STRINGIFY_(text) #text
#define TENON_STRINGIFY(text) TENON_STRINGIFY_(text)

/* Sizes of the frozen types as this compiler sees them, for TenonPluginDescV1. */
#define TENON_ABI_SIZES                                                                                      \
    {sizeof(TenonBdevIo),    sizeof(TenonIoChannel),    sizeof(TenonIoExtV1),   sizeof(TenonLimits),         \
     sizeof(TenonBdevEvent), sizeof(TenonHotplugEvent), sizeof(TenonLogRecord), sizeof(TenonErrorV1)}

/* The driver context behind io. */
static inline void *tenon_io_context(TenonBdevIo *io)
{
    return (uint8_t *)io + TENON_BDEV_IO_SIZE;
}
