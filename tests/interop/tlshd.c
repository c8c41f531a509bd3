/*
 * Secures connections of the kernel's NVMe/TCP host and target with TLS 1.3 and
 * pre-shared keys, as the daemon of that name of ktls-utils does, which Debian 12
 * does not have: the kernel hands over a connected socket, OpenSSL shakes hands on
 * it, and the record layer of the kernel goes on with what was agreed.
 *
 *     tlshd HASH INTERCHANGE-KEY HOSTNQN SUBNQN
 *
 * puts the key into the kernel's keyring, prints "ready" and serves until it is
 * killed. The keys are derived here, by OpenSSL, and not by what is tested.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/genetlink.h>
#include <linux/keyctl.h>
#include <linux/tls.h>
#include <netinet/tcp.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* <linux/handshake.h>, which the headers of Debian 12 are too old for. */
#define HANDSHAKE_FAMILY_NAME "handshake"
#define HANDSHAKE_MCGRP_TLSHD "tlshd"
enum { HANDSHAKE_CMD_READY = 1, HANDSHAKE_CMD_ACCEPT, HANDSHAKE_CMD_DONE };
enum { HANDSHAKE_HANDLER_CLASS_TLSHD = 1, HANDSHAKE_MSG_TYPE_SERVERHELLO = 2 };
enum {
	HANDSHAKE_A_ACCEPT_SOCKFD = 1,
	HANDSHAKE_A_ACCEPT_HANDLER_CLASS,
	HANDSHAKE_A_ACCEPT_MESSAGE_TYPE,
	HANDSHAKE_A_ACCEPT_TIMEOUT,
	HANDSHAKE_A_ACCEPT_PEER_IDENTITY = 6,
};
enum { HANDSHAKE_A_DONE_STATUS = 1, HANDSHAKE_A_DONE_SOCKFD, HANDSHAKE_A_DONE_REMOTE_AUTH };

/* What a handshake is about. */
struct handshake {
	int fd;
	uint32_t is_server;
	uint32_t timeout_ms;
	int32_t key;
	char identity[600];
	unsigned char psk[48];
	size_t psk_len;
	char secret[2][200]; /* of the client and of the server, in hexadecimal */
};

static int32_t keyring;
static struct handshake now;

static void die(const char *what)
{
	fprintf(stderr, "tlshd: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* ---- keys ------------------------------------------------------------- */

static long keyctl(int command, long a, long b, long c, long d)
{
	return syscall(SYS_keyctl, command, a, b, c, d);
}

/* HKDF-Expand-Label of TLS 1.3 (RFC 8446, 7.1), after HKDF-Extract if `extract`. */
static void derive(const char *digest, int extract, const void *key, size_t key_len, const char *label,
		   const char *context, void *out, size_t out_len)
{
	unsigned char secret[64];
	EVP_KDF *kdf;
	EVP_KDF_CTX *ctx;

	if (extract) {
		int mode = EVP_KDF_HKDF_MODE_EXTRACT_ONLY;
		size_t len = strcmp(digest, "SHA384") ? 32 : 48;
		OSSL_PARAM params[] = {
			OSSL_PARAM_int(OSSL_KDF_PARAM_MODE, &mode),
			OSSL_PARAM_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *)digest, 0),
			OSSL_PARAM_octet_string(OSSL_KDF_PARAM_KEY, (void *)key, key_len),
			OSSL_PARAM_END,
		};
		kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
		ctx = EVP_KDF_CTX_new(kdf);
		if (EVP_KDF_derive(ctx, secret, len, params) <= 0)
			die("extract");
		EVP_KDF_CTX_free(ctx);
		EVP_KDF_free(kdf);
		key = secret;
		key_len = len;
	}
	int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
	OSSL_PARAM params[] = {
		OSSL_PARAM_int(OSSL_KDF_PARAM_MODE, &mode),
		OSSL_PARAM_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *)digest, 0),
		OSSL_PARAM_octet_string(OSSL_KDF_PARAM_KEY, (void *)key, key_len),
		OSSL_PARAM_octet_string(OSSL_KDF_PARAM_PREFIX, (void *)"tls13 ", 6),
		OSSL_PARAM_octet_string(OSSL_KDF_PARAM_LABEL, (void *)label, strlen(label)),
		OSSL_PARAM_octet_string(OSSL_KDF_PARAM_DATA, (void *)context, strlen(context)),
		OSSL_PARAM_END,
	};
	kdf = EVP_KDF_fetch(NULL, "TLS13-KDF", NULL);
	ctx = EVP_KDF_CTX_new(kdf);
	if (EVP_KDF_derive(ctx, out, out_len, params) <= 0)
		die("expand");
	EVP_KDF_CTX_free(ctx);
	EVP_KDF_free(kdf);
}

/* The kernel's keyring of NVMe, which is linked to nothing: found by its name. */
static int32_t find_keyring(void)
{
	char line[512];
	unsigned int id = 0;
	FILE *keys = fopen("/proc/keys", "r");

	if (!keys)
		die("/proc/keys");
	while (!id && fgets(line, sizeof(line), keys))
		if (strstr(line, " keyring ") && strstr(line, " .nvme:"))
			sscanf(line, "%x", &id);
	fclose(keys);
	if (!id)
		die("keyring .nvme");
	return (int32_t)id;
}

/* TLS PSK of a key in the interchange format (NVMe/TCP, PSK and identity derivation), into the keyring. */
static void insert(const char *hash, const char *text, const char *hostnqn, const char *subnqn)
{
	const char *digest = strcmp(hash, "02") ? "SHA256" : "SHA384";
	unsigned char raw[80], retained[48], psk[48];
	char identity[600], base64[120];
	const char *start = strchr(text, ':');
	size_t len = strcmp(hash, "02") ? 32 : 48;

	/* NVMeTLSkey-1:HH:BASE64: with a CRC32 behind the key. */
	if (!start || strlen(start) < 5)
		die("interchange key");
	snprintf(base64, sizeof(base64), "%s", start + 4);
	base64[strcspn(base64, ":")] = 0;
	if (EVP_DecodeBlock(raw, (unsigned char *)base64, (int)strlen(base64)) < (int)len)
		die("base64");
	if (!strncmp(start, ":00", 3))
		memcpy(retained, raw, len);
	else
		derive(digest, 1, raw, len, "HostNQN", hostnqn, retained, len);
	snprintf(identity, sizeof(identity), "NVMe0R%s %s %s", hash, hostnqn, subnqn);
	derive(digest, 1, retained, len, "nvme-tls-psk", identity, psk, len);
	if (syscall(SYS_add_key, "psk", identity, psk, len, keyring) < 0)
		die("add_key");
}

/* Key and identity of a serial number. */
static int load_key(int32_t serial)
{
	char text[700], *name;
	long len = keyctl(KEYCTL_DESCRIBE, serial, (long)text, sizeof(text) - 1, 0);

	if (len < 0)
		return -1;
	text[len] = 0;
	name = strrchr(text, ';');
	if (!name)
		return -1;
	snprintf(now.identity, sizeof(now.identity), "%s", name + 1);
	len = keyctl(KEYCTL_READ, serial, (long)now.psk, sizeof(now.psk), 0);
	if (len != 32 && len != 48)
		return -1;
	now.psk_len = (size_t)len;
	now.key = serial;
	return 0;
}

/* ---- handshake -------------------------------------------------------- */

static SSL_SESSION *session_of(SSL *ssl)
{
	/* TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384 */
	unsigned char id[2] = { 0x13, now.psk_len == 48 ? 2 : 1 };
	SSL_SESSION *session = SSL_SESSION_new();

	SSL_SESSION_set1_master_key(session, now.psk, now.psk_len);
	SSL_SESSION_set_cipher(session, SSL_CIPHER_find(ssl, id));
	SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION);
	return session;
}

static int use_session(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *id_len, SSL_SESSION **session)
{
	(void)md;
	*id = (unsigned char *)now.identity;
	*id_len = strlen(now.identity);
	*session = session_of(ssl);
	return 1;
}

static int find_session(SSL *ssl, const unsigned char *id, size_t id_len, SSL_SESSION **session)
{
	char identity[600];
	long serial;

	snprintf(identity, sizeof(identity), "%.*s", (int)id_len, (const char *)id);
	serial = keyctl(KEYCTL_SEARCH, keyring, (long)"psk", (long)identity, 0);
	/* An unknown identity: no session, and the handshake fails for want of a certificate. */
	*session = serial > 0 && !load_key((int32_t)serial) ? session_of(ssl) : NULL;
	return 1;
}

static void keep_secret(const SSL *ssl, const char *line)
{
	char client[200], server[200];

	(void)ssl;
	if (sscanf(line, "CLIENT_TRAFFIC_SECRET_0 %*s %199s", client) == 1)
		strcpy(now.secret[0], client);
	if (sscanf(line, "SERVER_TRAFFIC_SECRET_0 %*s %199s", server) == 1)
		strcpy(now.secret[1], server);
}

/* Gives the kernel the key of one direction; it begins with the first record. */
static int secure(int direction, const char *hex)
{
	unsigned char secret[48], key[32], iv[12];
	const char *digest = now.psk_len == 48 ? "SHA384" : "SHA256";
	size_t len = strlen(hex) / 2;

	for (size_t at = 0; at < len; at++)
		sscanf(hex + 2 * at, "%2hhx", &secret[at]);
	derive(digest, 0, secret, len, "key", "", key, now.psk_len == 48 ? 32 : 16);
	derive(digest, 0, secret, len, "iv", "", iv, sizeof(iv));
	if (now.psk_len == 48) {
		struct tls12_crypto_info_aes_gcm_256 info = { 0 };
		info.info.version = TLS_1_3_VERSION;
		info.info.cipher_type = TLS_CIPHER_AES_GCM_256;
		memcpy(info.key, key, 32);
		memcpy(info.salt, iv, 4);
		memcpy(info.iv, iv + 4, 8);
		return setsockopt(now.fd, SOL_TLS, direction, &info, sizeof(info));
	}
	struct tls12_crypto_info_aes_gcm_128 info = { 0 };
	info.info.version = TLS_1_3_VERSION;
	info.info.cipher_type = TLS_CIPHER_AES_GCM_128;
	memcpy(info.key, key, 16);
	memcpy(info.salt, iv, 4);
	memcpy(info.iv, iv + 4, 8);
	return setsockopt(now.fd, SOL_TLS, direction, &info, sizeof(info));
}

/* Shakes hands; gives an error number. */
static int shake_hands(void)
{
	SSL_CTX *ctx = SSL_CTX_new(TLS_method());
	SSL *ssl;

	SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
	SSL_CTX_set_keylog_callback(ctx, keep_secret);
	/* A ticket would be a record that the kernel does not expect. */
	SSL_CTX_set_num_tickets(ctx, 0);
	SSL_CTX_set_psk_use_session_callback(ctx, use_session);
	SSL_CTX_set_psk_find_session_callback(ctx, find_session);
	ssl = SSL_new(ctx);
	SSL_set_fd(ssl, now.fd);
	alarm(now.timeout_ms / 1000 + 1);
	if ((now.is_server ? SSL_accept(ssl) : SSL_connect(ssl)) != 1) {
		ERR_print_errors_fp(stderr);
		return EACCES;
	}
	if (setsockopt(now.fd, SOL_TCP, TCP_ULP, "tls", 4) < 0 ||
	    secure(TLS_TX, now.secret[now.is_server]) < 0 || secure(TLS_RX, now.secret[!now.is_server]) < 0)
		return errno;
	return 0;
}

/* ---- netlink ---------------------------------------------------------- */

struct message {
	struct nlmsghdr head;
	struct genlmsghdr generic;
	char attributes[4096];
};

static void put(struct message *message, int type, const void *value, size_t len)
{
	struct nlattr *attribute = (void *)((char *)message + NLMSG_ALIGN(message->head.nlmsg_len));

	attribute->nla_type = type;
	attribute->nla_len = NLA_HDRLEN + len;
	memcpy((char *)attribute + NLA_HDRLEN, value, len);
	message->head.nlmsg_len = NLMSG_ALIGN(message->head.nlmsg_len) + NLA_ALIGN(attribute->nla_len);
}

static struct message request(int family, int command)
{
	struct message message = { 0 };

	message.head.nlmsg_type = family;
	message.head.nlmsg_flags = NLM_F_REQUEST;
	message.head.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN);
	message.generic.cmd = command;
	message.generic.version = 1;
	return message;
}

static void transmit(int netlink, struct message *message)
{
	if (send(netlink, message, message->head.nlmsg_len, 0) < 0)
		die("netlink send");
}

static int receive(int netlink, struct message *message)
{
	ssize_t len = recv(netlink, message, sizeof(*message), 0);

	if (len < 0)
		die("netlink receive");
	return message->head.nlmsg_type == NLMSG_ERROR ? -1 : (int)message->head.nlmsg_len;
}

/* Calls back for each attribute between two places. */
static void each(char *at, char *end, void (*call)(int type, char *value, size_t len))
{
	while (at + NLA_HDRLEN <= end) {
		struct nlattr *attribute = (void *)at;

		if (attribute->nla_len < NLA_HDRLEN)
			break;
		call(attribute->nla_type & NLA_TYPE_MASK, at + NLA_HDRLEN, attribute->nla_len - NLA_HDRLEN);
		at += NLA_ALIGN(attribute->nla_len);
	}
}

static int family, group;
static char group_name[64];
static uint32_t group_id;

static void read_group(int type, char *value, size_t len)
{
	if (type == CTRL_ATTR_MCAST_GRP_NAME)
		snprintf(group_name, sizeof(group_name), "%.*s", (int)len, value);
	if (type == CTRL_ATTR_MCAST_GRP_ID)
		memcpy(&group_id, value, 4);
}

static void read_groups(int type, char *value, size_t len)
{
	(void)type;
	each(value, value + len, read_group);
	if (!strcmp(group_name, HANDSHAKE_MCGRP_TLSHD))
		group = (int)group_id;
}

static void read_family(int type, char *value, size_t len)
{
	if (type == CTRL_ATTR_FAMILY_ID)
		family = *(uint16_t *)(void *)value;
	if (type == CTRL_ATTR_MCAST_GROUPS)
		each(value, value + len, read_groups);
}

static void read_accept(int type, char *value, size_t len)
{
	uint32_t number = 0;

	memcpy(&number, value, len < 4 ? len : 4);
	if (type == HANDSHAKE_A_ACCEPT_SOCKFD)
		now.fd = (int)number;
	if (type == HANDSHAKE_A_ACCEPT_MESSAGE_TYPE)
		now.is_server = number == HANDSHAKE_MSG_TYPE_SERVERHELLO;
	if (type == HANDSHAKE_A_ACCEPT_TIMEOUT)
		now.timeout_ms = number;
	if (type == HANDSHAKE_A_ACCEPT_PEER_IDENTITY)
		now.key = (int32_t)number;
}

static int open_netlink(void)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK };
	int netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC);

	if (netlink < 0 || bind(netlink, (void *)&address, sizeof(address)) < 0)
		die("netlink");
	return netlink;
}

/* One connection, in a process of its own: one that does not answer holds up no other. */
static void serve(void)
{
	struct message done;
	uint32_t status;
	int netlink = open_netlink();

	status = !now.is_server && load_key(now.key) ? ENOKEY : (uint32_t)shake_hands();
	done = request(family, HANDSHAKE_CMD_DONE);
	put(&done, HANDSHAKE_A_DONE_STATUS, &status, 4);
	put(&done, HANDSHAKE_A_DONE_SOCKFD, &now.fd, 4);
	if (!status)
		put(&done, HANDSHAKE_A_DONE_REMOTE_AUTH, &now.key, 4);
	transmit(netlink, &done);
	_exit(0);
}

int main(int count, char **words)
{
	struct message message;
	uint32_t class = HANDSHAKE_HANDLER_CLASS_TLSHD;
	int netlink, len;

	if (count != 5)
		return 2;
	keyring = find_keyring();
	keyctl(KEYCTL_LINK, keyring, KEY_SPEC_SESSION_KEYRING, 0, 0);
	insert(words[1], words[2], words[3], words[4]);
	netlink = open_netlink();
	message = request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
	put(&message, CTRL_ATTR_FAMILY_NAME, HANDSHAKE_FAMILY_NAME, sizeof(HANDSHAKE_FAMILY_NAME));
	transmit(netlink, &message);
	len = receive(netlink, &message);
	if (len < 0)
		die("family handshake");
	each(message.attributes, (char *)&message + len, read_family);
	if (setsockopt(netlink, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)) < 0)
		die("group tlshd");
	signal(SIGCHLD, SIG_IGN);
	puts("ready");
	fflush(stdout);
	for (;;) {
		len = receive(netlink, &message);
		if (len < 0 || message.generic.cmd != HANDSHAKE_CMD_READY)
			continue;
		int accept = open_netlink();
		message = request(family, HANDSHAKE_CMD_ACCEPT);
		put(&message, HANDSHAKE_A_ACCEPT_HANDLER_CLASS, &class, 4);
		transmit(accept, &message);
		len = receive(accept, &message);
		close(accept);
		if (len < 0)
			continue;
		memset(&now, 0, sizeof(now));
		each(message.attributes, (char *)&message + len, read_accept);
		if (!fork())
			serve();
		close(now.fd);
	}
}
