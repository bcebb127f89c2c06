/*
 * provisiond OTA client: brings a unit in release mode the ciphertext that was made
 * for its own flash key and for the very slot it is written to.
 *
 * The client asks the server of `provisiond ota serve` for a signed manifest of its
 * next slot, fetches the ciphertext in ranges, writes it raw, reads it back, and has
 * the chip check the image through its own decryption before it boots from it. After
 * a reset it goes on where it was.
 *
 * It is C99, takes no heap and no recursion, and knows no platform: what it needs
 * stands behind three tables of functions, for transport, flash and cryptography.
 * One provisiond_ota is used by one task. Every function that can fail returns a
 * provisiond_ota_err.
 */
#ifndef PROVISIOND_OTA_H
#define PROVISIOND_OTA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Every error, with the name that provisiond_ota_err_name gives. */
#define PROVISIOND_OTA_ERRORS(X)                                                      \
    X(OK, "ok")                                                                       \
    X(NOTHING_NEW, "nothing-new")           /* the server has no update */            \
    X(ARGUMENT, "argument")                 /* a caller's mistake */                  \
    X(PENDING_VERIFY, "pending-verify")     /* the running image is not confirmed */  \
    X(KNOWN_BAD, "known-bad")               /* refused or rolled back from before */  \
    X(CONNECT, "connect")                   /* no connection to the server */         \
    X(TRANSPORT, "transport")               /* a connection broke, or timed out */    \
    X(PROTOCOL, "protocol")                 /* an answer that is not understood */    \
    X(RANGE, "range")                       /* another part than was asked for */     \
    X(CHANGED, "changed")                   /* the server's bytes changed, again */   \
    X(UNAUTHORIZED, "unauthorized")         /* 401 or 403 */                          \
    X(NOT_FOUND, "not-found")               /* 404 */                                 \
    X(REFUSED, "refused")                   /* 409: the server's check refused */     \
    X(BUSY, "busy")                         /* 429 or 503: see retry_after */         \
    X(SERVER, "server")                     /* 5xx but 503 */                         \
    X(MANIFEST, "manifest")                 /* not a manifest */                      \
    X(SIGNER, "signer")                     /* signed with another key */             \
    X(SIGNATURE, "signature")               /* the signature does not fit */          \
    X(UNIT, "unit")                         /* a manifest for another unit */         \
    X(CHIP, "chip")                         /* for another chip */                    \
    X(SLOT, "slot")                         /* for another slot */                    \
    X(ADDRESS, "address")                   /* for another flash address */           \
    X(LENGTH, "length")                     /* does not fit the slot or the cipher */ \
    X(NONCE, "nonce")                       /* an answer to another question */       \
    X(SECURE_VERSION, "secure-version")     /* older than the unit may run */         \
    X(FLASH_READ, "flash-read")                                                       \
    X(FLASH_ERASE, "flash-erase")                                                     \
    X(FLASH_WRITE, "flash-write")                                                     \
    X(RECORD, "record")                     /* the progress record was not kept */    \
    X(PARTITION, "partition")               /* no slot to write to */                 \
    X(HASH, "hash")                         /* what lies in the flash is not it */    \
    X(VALIDATE, "validate")                 /* the chip found no image in it */       \
    X(SET_BOOT, "set-boot")                 /* the choice of the slot failed */       \
    X(CONFIRM, "confirm")                                                             \
    X(CRYPTO, "crypto")

typedef enum {
#define PROVISIOND_OTA_ENUM(name, text) PROVISIOND_OTA_##name,
    PROVISIOND_OTA_ERRORS(PROVISIOND_OTA_ENUM)
#undef PROVISIOND_OTA_ENUM
    PROVISIOND_OTA_ERR_COUNT
} provisiond_ota_err;

/* The error's name: lower case, with hyphens. */
const char *provisiond_ota_err_name(provisiond_ota_err err);

/* Sizes, in bytes without the closing zero where it is text. */
#define PROVISIOND_OTA_SECTOR 4096u       /* the flash's unit of an erase */
#define PROVISIOND_OTA_BUFFER PROVISIOND_OTA_SECTOR
#define PROVISIOND_OTA_MANIFEST_MAX 1024u /* a manifest's text */
#define PROVISIOND_OTA_TEXT_MAX 64u       /* release, project, version */
#define PROVISIOND_OTA_ETAG_MAX 99u
#define PROVISIOND_OTA_PATH_MAX 511u
#define PROVISIOND_OTA_RECORD_MAX 348u    /* a progress record */

/* ---- transport ---------------------------------------------------------- */

typedef struct {
    bool post;            /* otherwise GET */
    const char *path;     /* with the query, from the first '/' on */
    const char *token;    /* bearer token, or NULL */
    bool ranged;          /* Range: bytes=first-last */
    uint32_t first, last;
    const char *if_range; /* If-Range, or NULL */
    const char *body;     /* application/json, with post */
    size_t body_len;
} provisiond_ota_request;

/* What the client needs of an answer's head. Zero it, set the status, and give
 * every header field to provisiond_ota_response_header. */
typedef struct {
    int status;
    bool has_length, has_range, has_etag, has_retry;
    bool bad; /* a field was there twice, too long, or not understood */
    uint32_t length;
    uint32_t range_first, range_last, range_total;
    uint32_t retry_after; /* seconds */
    char etag[PROVISIOND_OTA_ETAG_MAX + 1];
} provisiond_ota_response;

/* Takes a header field, in any order; fields that do not matter are skipped. */
void provisiond_ota_response_header(provisiond_ota_response *resp, const char *name, const char *value);

typedef struct {
    /* Sends a request and reads the head of the answer. */
    provisiond_ota_err (*request)(void *ctx, const provisiond_ota_request *req, provisiond_ota_response *resp);
    /* Reads up to len bytes of the body, at least one; 0 is its end. */
    provisiond_ota_err (*read)(void *ctx, uint8_t *buf, size_t len, size_t *got);
    /* Ends the answer. Only one that was read to its end leaves a connection for
     * the next request. */
    void (*finish)(void *ctx, bool complete);
} provisiond_ota_transport;

/* ---- flash -------------------------------------------------------------- */

typedef struct {
    char name[8]; /* "ota_0" to "ota_15", "factory" */
    uint32_t address, size;
} provisiond_ota_slot;

/* What otadata says of a slot. */
typedef enum {
    PROVISIOND_OTA_STATE_UNKNOWN,  /* nothing, or rollback is not in use */
    PROVISIOND_OTA_STATE_NEW,      /* chosen, and not booted since */
    PROVISIOND_OTA_STATE_PENDING,  /* booted and not confirmed */
    PROVISIOND_OTA_STATE_VALID,
    PROVISIOND_OTA_STATE_REJECTED  /* refused by itself, or rolled back from */
} provisiond_ota_state;

/* Offsets count from the start of the slot. Nothing is encrypted or decrypted but
 * by set_boot, which looks through the chip's own decryption. */
typedef struct {
    provisiond_ota_err (*slots)(void *ctx, provisiond_ota_slot *running, provisiond_ota_slot *next);
    provisiond_ota_err (*state)(void *ctx, const provisiond_ota_slot *slot, provisiond_ota_state *state);
    provisiond_ota_err (*erase)(void *ctx, const provisiond_ota_slot *slot, uint32_t offset); /* one sector */
    provisiond_ota_err (*write)(void *ctx, const provisiond_ota_slot *slot, uint32_t offset, const uint8_t *data, uint32_t len);
    provisiond_ota_err (*read)(void *ctx, const provisiond_ota_slot *slot, uint32_t offset, uint8_t *data, uint32_t len);
    /* VALIDATE if the slot holds no image for this chip, SECURE_VERSION if it is
     * too old for the fuses, SET_BOOT for everything else. */
    provisiond_ota_err (*set_boot)(void *ctx, const provisiond_ota_slot *slot);
    provisiond_ota_err (*confirm)(void *ctx); /* the running image works */
    /* One small record that lives through a loss of power: whole or not at all.
     * load gives *len 0 if there is none. */
    provisiond_ota_err (*load)(void *ctx, uint8_t *record, size_t cap, size_t *len);
    provisiond_ota_err (*save)(void *ctx, const uint8_t *record, size_t len);
} provisiond_ota_flash;

/* ---- cryptography ------------------------------------------------------- */

typedef struct {
    provisiond_ota_err (*random)(void *ctx, uint8_t *out, size_t len);
    /* One SHA-256 at a time. */
    provisiond_ota_err (*sha256_start)(void *ctx);
    provisiond_ota_err (*sha256_update)(void *ctx, const uint8_t *data, size_t len);
    provisiond_ota_err (*sha256_finish)(void *ctx, uint8_t out[32]);
    /* ECDSA P-256 over a SHA-256, with the pinned key (X then Y) and the signature
     * as r then s, big-endian. SIGNATURE if it does not fit. */
    provisiond_ota_err (*verify)(void *ctx, const uint8_t key[64], const uint8_t hash[32], const uint8_t signature[64]);
} provisiond_ota_crypto;

/* ---- the client --------------------------------------------------------- */

typedef struct {
    uint8_t mac[6];         /* the base MAC: the unit's name */
    const char *chip;       /* "esp32", "esp32c3", ...: CONFIG_IDF_TARGET */
    const char *token;      /* the unit's token, or NULL where TLS says who it is */
    uint8_t public_key[64]; /* of the manifests' signer: P-256, X then Y */
    const char *version;    /* of the running image, or NULL */
    uint32_t secure_version; /* the lowest that the unit may run */
    uint32_t request_bytes; /* asked for at once; 0: 65536. Whole sectors */
    uint32_t save_every;    /* sectors between two progress records; 0: 16 */

    const provisiond_ota_transport *transport;
    void *transport_ctx;
    const provisiond_ota_flash *flash;
    void *flash_ctx;
    const provisiond_ota_crypto *crypto;
    void *crypto_ctx;

    uint8_t *buffer; /* PROVISIOND_OTA_BUFFER bytes, for the client alone */
    size_t buffer_len;

    void (*progress)(void *ctx, uint32_t done, uint32_t total); /* or NULL */
    void *progress_ctx;
} provisiond_ota_config;

/* A manifest whose text had the form of one. */
typedef struct {
    uint8_t mac[6];
    char chip[17];
    char release[PROVISIOND_OTA_TEXT_MAX + 1]; /* "" where the text has "-" */
    char project[PROVISIOND_OTA_TEXT_MAX + 1];
    char version[PROVISIOND_OTA_TEXT_MAX + 1];
    char slot[8];
    uint32_t address, length, plain_length, secure_version;
    uint8_t sha256_plain[32], sha256_cipher[32], key[32], signer[32];
    bool has_nonce;
    uint8_t nonce[16];
    uint8_t signature[64]; /* r then s */
    size_t signed_len;     /* the signature covers so many bytes from the start */
} provisiond_ota_manifest;

/* How the last update stands. */
typedef enum {
    PROVISIOND_OTA_PHASE_NONE,
    PROVISIOND_OTA_PHASE_WRITING,   /* `written` bytes lie in the slot */
    PROVISIOND_OTA_PHASE_SWITCHING, /* all of them do; the boot choice was begun */
    PROVISIOND_OTA_PHASE_SWITCHED,  /* the next boot is the new image's, or this one is */
    PROVISIOND_OTA_PHASE_CONFIRMED,
    PROVISIOND_OTA_PHASE_BAD        /* refused by the chip, rolled back from, or other bytes came */
} provisiond_ota_phase;

typedef struct {
    uint8_t phase; /* provisiond_ota_phase */
    bool told;     /* the server knows */
    uint8_t why;   /* provisiond_ota_err, with PHASE_BAD; OK: rolled back */
    bool rejected; /* otadata had rejected the slot before it was chosen */
    uint32_t address, length, written, secure_version;
    uint8_t sha256_plain[32], sha256_cipher[32];
    char slot[8];
    char release[PROVISIOND_OTA_TEXT_MAX + 1];
    char version[PROVISIOND_OTA_TEXT_MAX + 1];
    char etag[PROVISIOND_OTA_ETAG_MAX + 1];
} provisiond_ota_record;

/* What the boot was, as far as updates go. */
typedef enum {
    PROVISIOND_OTA_BOOT_NORMAL,
    PROVISIOND_OTA_BOOT_NEW,        /* an update runs that is not confirmed yet */
    PROVISIOND_OTA_BOOT_ROLLED_BACK /* an update was booted and is not running */
} provisiond_ota_boot;

/* The client. Its members are for reading. */
typedef struct {
    provisiond_ota_config config;
    uint8_t signer[32];
    provisiond_ota_slot running, next;
    provisiond_ota_boot boot;
    provisiond_ota_record record;
    provisiond_ota_manifest manifest;
    provisiond_ota_response response;
    char path[PROVISIOND_OTA_PATH_MAX + 1];
    uint32_t fetched;     /* bytes of ciphertext since init */
    uint32_t retry_after; /* seconds, after BUSY: 1 to 3600 */
    int status;           /* of the last answer, 0 without one */
    bool switched_now;    /* in this boot: nothing more is done before the reset */
} provisiond_ota;

/* Once after each boot: looks at the slots and the record, and so finds what the
 * boot was. It does not talk to the server. What config points to must stay. Where
 * rollback is not in use, a second call between an update and the restart takes the
 * update for one that was rolled back from. */
provisiond_ota_err provisiond_ota_init(provisiond_ota *ota, const provisiond_ota_config *config);

/* The running image works. Call it when the self-test of a new image went well;
 * until then the boot loader may take the old one back (esp-idf: rollback). Then it
 * tells the server; if that fails, the next call of report or update does. */
provisiond_ota_err provisiond_ota_confirm(provisiond_ota *ota);

/* Tells the server what it does not know yet: applied, failed, confirmed or
 * rolled-back. Nothing to tell is OK. */
provisiond_ota_err provisiond_ota_report(provisiond_ota *ota);

/* Takes an update if there is one. OK: the next boot is the new image's, restart.
 * After any other result the old image stays the one that boots. Call it again later,
 * after retry_after seconds with BUSY; a transfer that broke off goes on where it was. */
provisiond_ota_err provisiond_ota_update(provisiond_ota *ota);

/* Forgets an unfinished update, and one that was refused or rolled back from. */
provisiond_ota_err provisiond_ota_forget(provisiond_ota *ota);

/* ---- parts, for ports and tests ------------------------------------------ */

/* Reads a manifest's text. It checks the form alone. */
provisiond_ota_err provisiond_ota_manifest_parse(provisiond_ota_manifest *m, const uint8_t *text, size_t len);

/* A record's stored form; decode takes only what encode gave. */
size_t provisiond_ota_record_encode(const provisiond_ota_record *r, uint8_t out[PROVISIOND_OTA_RECORD_MAX]);
bool provisiond_ota_record_decode(provisiond_ota_record *r, const uint8_t *in, size_t len);

#ifdef __cplusplus
}
#endif

#endif
