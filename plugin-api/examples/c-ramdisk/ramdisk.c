/*
 * A complete plugin in C: a RAM disk. Reads, writes and forgets.
 *
 *     cc -std=c11 -O2 -Wall -Wextra -Werror -fPIC -shared -fvisibility=hidden -I ../.. -o ramdisk.so ramdisk.c
 *
 * Parameters: {"name": "r0", "num_blocks": 32768, "block_size": 512}; block_size is optional.
 */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "tenon_plugin.h"

#define TEXT(literal) {(const uint8_t *)(literal), sizeof(literal) - 1}
#define MAX_NAME 255

TENON_PLUGIN_METADATA("c_ramdisk", "1.0.0", "bdev", "bdev_c_ramdisk_create,bdev_c_ramdisk_delete");

/* One device. The host frees nothing of it; `destruct` does. */
struct ramdisk {
    uint8_t *memory;
    size_t bytes;
    uint32_t block_size;
};

struct params {
    char name[MAX_NAME + 1];
    uint64_t num_blocks;
    uint64_t block_size;
};

static const TenonHostApiV1 *host;
static TenonHostModule *me;

/* ---- data path: on the channel's reactor, without blocking ------------------------------------------------ */

static void copy_pieces(const TenonBdevIo *io, uint8_t *medium)
{
    for (uint32_t i = 0; i < io->iovcnt; i++) {
        const TenonIoVec *piece = &io->iovs[i];
        if (io->op == TenonOp_READ)
            memcpy(piece->base, medium, piece->len);
        else
            memcpy(medium, piece->base, piece->len);
        medium += piece->len;
    }
}

static void submit(TenonIoChannel *ch, TenonBdevIo *io)
{
    const struct ramdisk *disk = ch->ctx;
    /* The host's gate has checked range, payload and operation. */
    uint8_t *medium = disk->memory + io->offset_blocks * disk->block_size;

    switch (io->op) {
    case TenonOp_READ:
    case TenonOp_WRITE:
        copy_pieces(io, medium);
        break;
    case TenonOp_WRITE_ZEROES:
        memset(medium, 0, io->num_blocks * disk->block_size);
        break;
    case TenonOp_FLUSH:
        break;
    default:
        tenon_complete(io, TenonIoStatus_NOT_SUPPORTED);
        return;
    }
    tenon_complete(io, TenonIoStatus_SUCCESS);
}

static const TenonIoOpsV1 io_ops = {.size = sizeof(io_ops), .submit = submit};

/* ---- one device -------------------------------------------------------------------------------------------- */

static int32_t channel_create(void *ctx, TenonIoChannel *ch)
{
    ch->ops = &io_ops;
    ch->ctx = ctx;
    ch->io_ctx_size = 0;
    return 0;
}

static void channel_destroy(void *ctx, TenonIoChannel *ch)
{
    (void)ctx;
    (void)ch;
}

static void destruct(void *ctx, TenonOpToken token)
{
    struct ramdisk *disk = ctx;

    host->free(disk->memory, disk->bytes, 4096);
    free(disk);
    host->op_done(token, tenon_str(""), NULL);
}

static const TenonBdevOpsV1 bdev_ops = {
    .size = sizeof(bdev_ops),
    .channel_create = channel_create,
    .channel_destroy = channel_destroy,
    .destruct = destruct,
};

/* ---- parameters: a flat JSON object of plain strings and non-negative integers ----------------------------- */

static const char *skip_space(const char *at)
{
    while (isspace((unsigned char)*at))
        at++;
    return at;
}

/* Reads a string without escapes of at most MAX_NAME bytes; NULL if it is none. */
static const char *read_string(const char *at, char *out)
{
    size_t len;

    if (*at != '"')
        return NULL;
    len = strcspn(at + 1, "\"\\");
    if (at[1 + len] != '"' || len > MAX_NAME)
        return NULL;
    memcpy(out, at + 1, len);
    out[len] = '\0';
    return at + len + 2;
}

static const char *read_number(const char *at, uint64_t *out)
{
    char *end;

    if (!isdigit((unsigned char)*at))
        return NULL;
    errno = 0;
    *out = strtoull(at, &end, 10);
    return errno == 0 ? end : NULL;
}

/* Reads one `"key": value`; NULL, with what is wrong in `reason`, if it is none of ours. */
static const char *read_member(const char *at, struct params *params, char *reason, size_t len)
{
    char key[MAX_NAME + 1];

    at = read_string(at, key);
    if (at)
        at = skip_space(at);
    if (!at || *at != ':') {
        snprintf(reason, len, "parameters are not a json object of plain values");
        return NULL;
    }
    at = skip_space(at + 1);
    if (strcmp(key, "name") == 0) {
        at = read_string(at, params->name);
    } else if (strcmp(key, "num_blocks") == 0) {
        at = read_number(at, &params->num_blocks);
    } else if (strcmp(key, "block_size") == 0) {
        at = read_number(at, &params->block_size);
    } else {
        snprintf(reason, len, "unknown field %.64s, expected name, num_blocks or block_size", key);
        return NULL;
    }
    if (!at)
        snprintf(reason, len, "%.64s has no valid value", key);
    return at;
}

/* Returns 0, or -EINVAL with what is wrong in `reason`. */
static int32_t parse(TenonStr json, struct params *params, char *reason, size_t len)
{
    char text[4096];
    const char *at = text;

    *params = (struct params){.block_size = 512};
    if (json.len >= sizeof(text)) {
        snprintf(reason, len, "parameters of %zu bytes are too long", json.len);
        return -EINVAL;
    }
    memcpy(text, json.ptr, json.len);
    text[json.len] = '\0';
    at = skip_space(at);
    for (char expected = '{'; *at == expected && *skip_space(at + 1) != '}'; expected = ',') {
        at = read_member(skip_space(at + 1), params, reason, len);
        if (!at)
            return -EINVAL;
        at = skip_space(at);
    }
    if (params->name[0] == '\0') {
        snprintf(reason, len, "name is missing");
        return -EINVAL;
    }
    if (params->block_size != 512 && params->block_size != 4096) {
        snprintf(reason, len, "block_size %" PRIu64 " is not 512 or 4096", params->block_size);
        return -EINVAL;
    }
    if (params->num_blocks == 0 || params->num_blocks > SIZE_MAX / params->block_size) {
        snprintf(reason, len, "num_blocks %" PRIu64 " is out of range", params->num_blocks);
        return -EINVAL;
    }
    return 0;
}

/* ---- the module: on the host's control thread --------------------------------------------------------------- */

static int32_t init(const TenonHostApiV1 *api, TenonHostModule *module, TenonStr config, char *err, size_t len)
{
    (void)config;
    if (!TENON_REACHES(api, op_done)) {
        snprintf(err, len, "the host is too old");
        return -EINVAL;
    }
    host = api;
    me = module;
    return 0;
}

static void fail(TenonOpToken token, int32_t code, const char *object, const char *reason)
{
    TenonErrorV1 error = {
        .size = sizeof(error),
        .code = code,
        .object = tenon_str(object),
        .reason = tenon_str(reason),
    };

    host->op_done(token, tenon_str(""), &error);
}

static void create(TenonStr params_json, TenonOpToken token)
{
    char reason[256], result[MAX_NAME + 3];
    struct params params;
    struct ramdisk *disk;
    TenonBdevHandle handle;
    int32_t code = parse(params_json, &params, reason, sizeof(reason));

    if (code != 0) {
        fail(token, code, params.name, reason);
        return;
    }
    disk = calloc(1, sizeof(*disk));
    if (disk) {
        disk->block_size = (uint32_t)params.block_size;
        disk->bytes = (size_t)(params.num_blocks * params.block_size);
        disk->memory = host->alloc(disk->bytes, 4096, -1);
    }
    if (!disk || !disk->memory) {
        free(disk);
        fail(token, -ENOMEM, params.name, "no memory for the disk");
        return;
    }
    TenonBdevV1 bdev = {
        .size = sizeof(bdev),
        .limits = {
            .num_blocks = params.num_blocks,
            .block_size = disk->block_size,
            .physical_block_size = disk->block_size,
            .required_alignment = 1,
        },
        .io_types = 1 << TenonOp_READ | 1 << TenonOp_WRITE | 1 << TenonOp_FLUSH | 1 << TenonOp_WRITE_ZEROES,
        .numa_node = -1,
        .name = tenon_str(params.name),
        .product = TEXT("RAM disk in C"),
        .ctx = disk,
        .ops = &bdev_ops,
    };
    code = host->bdev_register(me, &bdev, token, &handle);
    if (code != 0) {
        host->free(disk->memory, disk->bytes, 4096);
        free(disk);
        fail(token, code, params.name, "cannot register the device");
        return;
    }
    snprintf(result, sizeof(result), "\"%s\"", params.name);
    host->op_done(token, tenon_str(result), NULL);
}

static void fini(TenonOpToken token)
{
    host->op_done(token, tenon_str(""), NULL);
}

static int32_t validate(TenonStr params_json, char *err, size_t len)
{
    struct params params;

    return parse(params_json, &params, err, len);
}

static TenonStr schema(void)
{
    static const TenonStr text = TEXT(
        "{\"$schema\":\"https://json-schema.org/draft/2020-12/schema\",\"type\":\"object\",\"properties\":"
        "{\"bdev\":{\"type\":\"object\",\"additionalProperties\":false,\"required\":[\"name\",\"num_blocks\"],"
        "\"properties\":{\"name\":{\"type\":\"string\"},\"num_blocks\":{\"type\":\"integer\",\"minimum\":1},"
        "\"block_size\":{\"enum\":[512,4096]}}},\"module\":{\"type\":\"object\"}}}");
    return text;
}

static const TenonModuleOpsV1 module_ops = {
    .size = sizeof(module_ops),
    .init = init,
    .create = create,
    .fini = fini,
    .schema = schema,
    .validate = validate,
};

const TenonPluginDescV1 *tenon_plugin_v1(void)
{
    static const TenonPluginDescV1 descriptor = {
        .magic = TENON_MAGIC,
        .size = sizeof(descriptor),
        .abi_major = TENON_ABI_MAJOR,
        .abi_minor = TENON_ABI_MINOR,
        .sizes = TENON_ABI_SIZES,
        .name = TEXT("c_ramdisk"),
        .version = TEXT("1.0.0"),
        .built_with = TEXT("c11"),
        .ops = &module_ops,
    };
    return &descriptor;
}
