/* The flow of an update. Everything that the server says is checked against the
 * signed manifest, everything that the flash should hold is read back. */
#include "internal.h"

#include <string.h>

#define DEFAULT_REQUEST 65536u
#define DEFAULT_SAVE_EVERY 16u
/* Seconds to wait for a busy server that does not say how long, and at most: callers
 * count milliseconds and ticks in 32 bits. */
#define DEFAULT_RETRY 60u
#define MAX_RETRY 3600u
/* How often one call begins anew because the server's bytes changed under it. */
#define MAX_TRIES 3

static const char *const err_names[] = {
#define NAME(name, text) text,
    PROVISIOND_OTA_ERRORS(NAME)
#undef NAME
};

const char *provisiond_ota_err_name(provisiond_ota_err err)
{
    return (unsigned)err < PROVISIOND_OTA_ERR_COUNT ? err_names[err] : "unknown";
}

/* ---- the record --------------------------------------------------------- */

static provisiond_ota_err save(provisiond_ota *ota)
{
    uint8_t raw[PROVISIOND_OTA_RECORD_MAX];
    size_t n = provisiond_ota_record_encode(&ota->record, raw);
    return ota->config.flash->save(ota->config.flash_ctx, raw, n) == PROVISIOND_OTA_OK ? PROVISIOND_OTA_OK
                                                                                        : PROVISIOND_OTA_RECORD;
}

static provisiond_ota_err clear_record(provisiond_ota *ota)
{
    memset(&ota->record, 0, sizeof ota->record);
    return save(ota);
}

static provisiond_ota_err bad_record(provisiond_ota *ota, provisiond_ota_err why)
{
    ota->record.phase = PROVISIOND_OTA_PHASE_BAD;
    ota->record.why = (uint8_t)why;
    ota->record.told = false;
    return save(ota);
}

/* ---- start -------------------------------------------------------------- */

/* SubjectPublicKeyInfo of a P-256 key, up to X and Y (RFC 5480): its hash with them
 * is the signer's name. */
static const uint8_t spki_head[27] = {
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
    0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
};

static bool complete(const provisiond_ota_config *c)
{
    return c->chip != NULL && c->transport != NULL && c->flash != NULL && c->crypto != NULL &&
           c->buffer != NULL && c->buffer_len >= PROVISIOND_OTA_BUFFER &&
           c->request_bytes % PROVISIOND_OTA_SECTOR == 0 &&
           (c->token == NULL || pvo_printable(c->token, strlen(c->token), 256));
}

static bool hash_two(provisiond_ota *ota, const uint8_t *a, size_t na, const uint8_t *b, size_t nb, uint8_t out[32])
{
    const provisiond_ota_crypto *c = ota->config.crypto;
    void *ctx = ota->config.crypto_ctx;
    return c->sha256_start(ctx) == PROVISIOND_OTA_OK && c->sha256_update(ctx, a, na) == PROVISIOND_OTA_OK &&
           (nb == 0 || c->sha256_update(ctx, b, nb) == PROVISIOND_OTA_OK) &&
           c->sha256_finish(ctx, out) == PROVISIOND_OTA_OK;
}

/* What became of the update that was to boot. */
static provisiond_ota_err settle_boot(provisiond_ota *ota)
{
    provisiond_ota_record *r = &ota->record;
    bool running = r->address == ota->running.address;
    provisiond_ota_slot target;
    provisiond_ota_state state = PROVISIOND_OTA_STATE_UNKNOWN;
    provisiond_ota_err err;

    if (r->phase != PROVISIOND_OTA_PHASE_SWITCHING && r->phase != PROVISIOND_OTA_PHASE_SWITCHED) {
        return PROVISIOND_OTA_OK;
    }
    if (running) {
        ota->boot = PROVISIOND_OTA_BOOT_NEW; /* said again at each boot until it is confirmed */
        if (r->phase == PROVISIOND_OTA_PHASE_SWITCHING) {
            r->phase = PROVISIOND_OTA_PHASE_SWITCHED;
            return save(ota);
        }
        return PROVISIOND_OTA_OK;
    }
    memset(&target, 0, sizeof target);
    memcpy(target.name, r->slot, sizeof target.name);
    target.address = r->address;
    err = ota->config.flash->state(ota->config.flash_ctx, &target, &state);
    if (err != PROVISIOND_OTA_OK) {
        return err;
    }
    if (state == PROVISIOND_OTA_STATE_NEW) { /* there was no restart since */
        ota->switched_now = true;
        r->phase = PROVISIOND_OTA_PHASE_SWITCHED;
        return PROVISIOND_OTA_OK;
    }
    if (r->phase == PROVISIOND_OTA_PHASE_SWITCHING && state != PROVISIOND_OTA_STATE_PENDING &&
        (state != PROVISIOND_OTA_STATE_REJECTED || r->rejected)) {
        /* Power failed before the choice was made: it is made again. (A slot that was
         * rejected before says nothing; if it was booted and rejected once more, the
         * next time tells.) */
        r->phase = PROVISIOND_OTA_PHASE_WRITING;
        return save(ota);
    }
    ota->boot = PROVISIOND_OTA_BOOT_ROLLED_BACK;
    return bad_record(ota, PROVISIOND_OTA_OK);
}

provisiond_ota_err provisiond_ota_init(provisiond_ota *ota, const provisiond_ota_config *config)
{
    uint8_t raw[PROVISIOND_OTA_RECORD_MAX];
    size_t n = 0;
    provisiond_ota_err err;

    if (ota == NULL || config == NULL || !complete(config)) {
        return PROVISIOND_OTA_ARGUMENT;
    }
    memset(ota, 0, sizeof *ota);
    ota->config = *config;
    if (ota->config.request_bytes == 0) {
        ota->config.request_bytes = DEFAULT_REQUEST;
    }
    if (ota->config.save_every == 0) {
        ota->config.save_every = DEFAULT_SAVE_EVERY;
    }
    /* No version stops an update. esp_app_desc_t has 32 bytes for it. */
    if (config->version != NULL && strlen(config->version) > PROVISIOND_OTA_TEXT_MAX) {
        ota->config.version = NULL;
    }
    if (!hash_two(ota, spki_head, sizeof spki_head, config->public_key, sizeof config->public_key, ota->signer)) {
        return PROVISIOND_OTA_CRYPTO;
    }
    err = config->flash->slots(config->flash_ctx, &ota->running, &ota->next);
    if (err != PROVISIOND_OTA_OK) {
        return err;
    }
    if (ota->next.size < PROVISIOND_OTA_SECTOR || ota->next.size % PROVISIOND_OTA_SECTOR != 0 ||
        ota->next.address == ota->running.address || memchr(ota->next.name, 0, sizeof ota->next.name) == NULL) {
        return PROVISIOND_OTA_PARTITION;
    }
    if (config->flash->load(config->flash_ctx, raw, sizeof raw, &n) != PROVISIOND_OTA_OK) {
        return PROVISIOND_OTA_RECORD;
    }
    /* A record that does not decode is none: the update begins anew. */
    (void)provisiond_ota_record_decode(&ota->record, raw, n <= sizeof raw ? n : 0);
    return settle_boot(ota);
}

provisiond_ota_err provisiond_ota_forget(provisiond_ota *ota)
{
    if (ota->switched_now || ota->boot == PROVISIOND_OTA_BOOT_NEW) {
        return PROVISIOND_OTA_ARGUMENT; /* restart, or confirm first */
    }
    ota->boot = PROVISIOND_OTA_BOOT_NORMAL;
    return clear_record(ota);
}

/* ---- talking ------------------------------------------------------------ */

static provisiond_ota_err of_status(provisiond_ota *ota)
{
    switch (ota->response.status) {
    case 401:
    case 403:
        return PROVISIOND_OTA_UNAUTHORIZED;
    case 404:
        return PROVISIOND_OTA_NOT_FOUND;
    case 409:
        return PROVISIOND_OTA_REFUSED;
    case 429:
    case 503:
        ota->retry_after = ota->response.has_retry ? ota->response.retry_after : DEFAULT_RETRY;
        if (ota->retry_after == 0) {
            ota->retry_after = 1;
        } else if (ota->retry_after > MAX_RETRY) {
            ota->retry_after = MAX_RETRY;
        }
        return PROVISIOND_OTA_BUSY;
    default:
        return ota->response.status >= 500 ? PROVISIOND_OTA_SERVER : PROVISIOND_OTA_PROTOCOL;
    }
}

/* The server has heard it and will not take it: to repeat it does not help. */
static bool final_answer(provisiond_ota_err err)
{
    return err == PROVISIOND_OTA_NOT_FOUND || err == PROVISIOND_OTA_REFUSED || err == PROVISIOND_OTA_PROTOCOL;
}

static provisiond_ota_err request(provisiond_ota *ota, provisiond_ota_request *req)
{
    provisiond_ota_err err;
    memset(&ota->response, 0, sizeof ota->response);
    ota->retry_after = 0;
    req->path = ota->path;
    req->token = ota->config.token;
    err = ota->config.transport->request(ota->config.transport_ctx, req, &ota->response);
    ota->status = err == PROVISIOND_OTA_OK ? ota->response.status : 0;
    return err;
}

static void finish(provisiond_ota *ota, bool whole)
{
    ota->config.transport->finish(ota->config.transport_ctx, whole);
}

/* Reads exactly len bytes of the body. */
static provisiond_ota_err read_body(provisiond_ota *ota, uint8_t *buf, size_t len)
{
    while (len > 0) {
        size_t got = 0;
        provisiond_ota_err err = ota->config.transport->read(ota->config.transport_ctx, buf, len, &got);
        if (err != PROVISIOND_OTA_OK) {
            return err;
        }
        if (got == 0 || got > len) {
            return PROVISIOND_OTA_TRANSPORT;
        }
        buf += got;
        len -= got;
    }
    return PROVISIOND_OTA_OK;
}

/* Starts the path of a request about this unit. */
static void unit_path(provisiond_ota *ota, pvo_text *t, const char *what)
{
    pvo_text_start(t, ota->path, sizeof ota->path);
    pvo_text_add(t, "/v1/units/");
    pvo_text_mac(t, ota->config.mac);
    pvo_text_add(t, what);
}

/* ---- telling ------------------------------------------------------------ */

static const char *outcome(const provisiond_ota *ota)
{
    switch (ota->record.phase) {
    case PROVISIOND_OTA_PHASE_SWITCHED:
        /* While the new image runs unconfirmed there is nothing to say yet. */
        return ota->boot == PROVISIOND_OTA_BOOT_NEW ? NULL : "applied";
    case PROVISIOND_OTA_PHASE_CONFIRMED:
        return "confirmed";
    case PROVISIOND_OTA_PHASE_BAD:
        return ota->record.why == PROVISIOND_OTA_OK ? "rolled-back" : "failed";
    default:
        return NULL;
    }
}

/* Posts a result. The body is made in the buffer. */
static provisiond_ota_err tell(provisiond_ota *ota, const char *what, provisiond_ota_err why)
{
    const provisiond_ota_record *r = &ota->record;
    provisiond_ota_request req;
    provisiond_ota_err err;
    pvo_text t;

    unit_path(ota, &t, "/result");
    if (t.full) {
        return PROVISIOND_OTA_ARGUMENT;
    }
    pvo_text_start(&t, (char *)ota->config.buffer, PROVISIOND_OTA_BUFFER);
    pvo_text_add(&t, "{\"release\":");
    pvo_text_json(&t, r->release);
    pvo_text_add(&t, ",\"slot\":");
    pvo_text_json(&t, r->slot);
    pvo_text_add(&t, ",\"outcome\":");
    pvo_text_json(&t, what);
    pvo_text_add(&t, ",\"reason\":");
    pvo_text_json(&t, why == PROVISIOND_OTA_OK ? "" : provisiond_ota_err_name(why));
    pvo_text_add(&t, ",\"version\":");
    pvo_text_json(&t, ota->config.version == NULL ? "" : ota->config.version);
    pvo_text_add(&t, ",\"secure_version\":");
    pvo_text_number(&t, ota->config.secure_version);
    pvo_text_add(&t, "}");
    if (t.full) {
        return PROVISIOND_OTA_ARGUMENT;
    }
    memset(&req, 0, sizeof req);
    req.post = true;
    req.body = t.at;
    req.body_len = t.len;
    err = request(ota, &req);
    if (err != PROVISIOND_OTA_OK) {
        return err;
    }
    finish(ota, ota->response.status == 204);
    return ota->response.status == 204 ? PROVISIOND_OTA_OK : of_status(ota);
}

provisiond_ota_err provisiond_ota_report(provisiond_ota *ota)
{
    const char *what = outcome(ota);
    provisiond_ota_err err, kept;
    if (what == NULL || ota->record.told) {
        return PROVISIOND_OTA_OK;
    }
    err = tell(ota, what, (provisiond_ota_err)ota->record.why);
    if (err != PROVISIOND_OTA_OK && !final_answer(err)) {
        return err;
    }
    ota->record.told = true;
    kept = save(ota);
    return kept == PROVISIOND_OTA_OK ? err : kept;
}

provisiond_ota_err provisiond_ota_confirm(provisiond_ota *ota)
{
    provisiond_ota_state state = PROVISIOND_OTA_STATE_UNKNOWN;
    provisiond_ota_err err = ota->config.flash->state(ota->config.flash_ctx, &ota->running, &state);
    if (err != PROVISIOND_OTA_OK) {
        return err;
    }
    if (state == PROVISIOND_OTA_STATE_PENDING || ota->boot == PROVISIOND_OTA_BOOT_NEW) {
        err = ota->config.flash->confirm(ota->config.flash_ctx);
        if (err != PROVISIOND_OTA_OK) {
            return err;
        }
    }
    if (ota->boot == PROVISIOND_OTA_BOOT_NEW) {
        ota->boot = PROVISIOND_OTA_BOOT_NORMAL;
        ota->record.phase = PROVISIOND_OTA_PHASE_CONFIRMED;
        ota->record.why = PROVISIOND_OTA_OK;
        ota->record.told = false;
        err = save(ota);
        if (err != PROVISIOND_OTA_OK) {
            return err;
        }
    }
    return provisiond_ota_report(ota);
}

/* ---- the manifest ------------------------------------------------------- */

static provisiond_ota_err read_manifest(provisiond_ota *ota, const uint8_t nonce[16])
{
    provisiond_ota_request req;
    provisiond_ota_err err;
    uint8_t hash[32];
    pvo_text t;

    unit_path(ota, &t, "/manifest?slot=");
    pvo_text_query(&t, ota->next.name);
    pvo_text_add(&t, "&nonce=");
    pvo_text_hex(&t, nonce, 16);
    if (ota->config.version != NULL && ota->config.version[0] != '\0') {
        pvo_text_add(&t, "&have=");
        pvo_text_query(&t, ota->config.version);
    }
    pvo_text_add(&t, "&secure_version=");
    pvo_text_number(&t, ota->config.secure_version);
    if (t.full) {
        return PROVISIOND_OTA_ARGUMENT;
    }
    memset(&req, 0, sizeof req);
    err = request(ota, &req);
    if (err != PROVISIOND_OTA_OK) {
        return err;
    }
    if (ota->response.status == 204) {
        finish(ota, true);
        return PROVISIOND_OTA_NOTHING_NEW;
    }
    if (ota->response.status != 200) {
        finish(ota, false);
        return of_status(ota);
    }
    if (ota->response.bad || !ota->response.has_length) {
        finish(ota, false);
        return PROVISIOND_OTA_PROTOCOL;
    }
    if (ota->response.length == 0 || ota->response.length > PROVISIOND_OTA_MANIFEST_MAX) {
        finish(ota, false);
        return PROVISIOND_OTA_MANIFEST;
    }
    err = read_body(ota, ota->config.buffer, ota->response.length);
    finish(ota, err == PROVISIOND_OTA_OK);
    if (err == PROVISIOND_OTA_OK) {
        err = provisiond_ota_manifest_parse(&ota->manifest, ota->config.buffer, ota->response.length);
    }
    if (err != PROVISIOND_OTA_OK) {
        return err;
    }
    if (memcmp(ota->manifest.signer, ota->signer, sizeof ota->signer) != 0) {
        return PROVISIOND_OTA_SIGNER;
    }
    if (!hash_two(ota, ota->config.buffer, ota->manifest.signed_len, NULL, 0, hash)) {
        return PROVISIOND_OTA_CRYPTO;
    }
    return ota->config.crypto->verify(ota->config.crypto_ctx, ota->config.public_key, hash, ota->manifest.signature);
}

/* A manifest that is signed must also be for this unit, now. */
static provisiond_ota_err check_manifest(provisiond_ota *ota, const uint8_t nonce[16])
{
    const provisiond_ota_manifest *m = &ota->manifest;
    if (!m->has_nonce || memcmp(m->nonce, nonce, 16) != 0) {
        return PROVISIOND_OTA_NONCE;
    }
    if (memcmp(m->mac, ota->config.mac, sizeof m->mac) != 0) {
        return PROVISIOND_OTA_UNIT;
    }
    if (strcmp(m->chip, ota->config.chip) != 0) {
        return PROVISIOND_OTA_CHIP;
    }
    if (strcmp(m->slot, ota->next.name) != 0) {
        return PROVISIOND_OTA_SLOT;
    }
    if (m->address != ota->next.address) {
        return PROVISIOND_OTA_ADDRESS;
    }
    if (m->length > ota->next.size) {
        return PROVISIOND_OTA_LENGTH;
    }
    if (m->secure_version < ota->config.secure_version) {
        return PROVISIOND_OTA_SECURE_VERSION;
    }
    return PROVISIOND_OTA_OK;
}

/* The same ciphertext for the same place. */
static bool same_update(const provisiond_ota *ota)
{
    const provisiond_ota_record *r = &ota->record;
    const provisiond_ota_manifest *m = &ota->manifest;
    return r->address == m->address && r->length == m->length && strcmp(r->slot, m->slot) == 0 &&
           memcmp(r->sha256_cipher, m->sha256_cipher, 32) == 0;
}

/* Begins the manifest's update anew. */
static provisiond_ota_err begin(provisiond_ota *ota)
{
    const provisiond_ota_manifest *m = &ota->manifest;
    provisiond_ota_record *r = &ota->record;
    memset(r, 0, sizeof *r);
    r->phase = PROVISIOND_OTA_PHASE_WRITING;
    r->address = m->address;
    r->length = m->length;
    r->secure_version = m->secure_version;
    memcpy(r->sha256_plain, m->sha256_plain, 32);
    memcpy(r->sha256_cipher, m->sha256_cipher, 32);
    memcpy(r->slot, m->slot, sizeof r->slot);
    memcpy(r->release, m->release, sizeof r->release);
    memcpy(r->version, m->version, sizeof r->version);
    return save(ota);
}

/* Gets a manifest that may be acted on, and a record that fits it. */
static provisiond_ota_err ask(provisiond_ota *ota)
{
    const provisiond_ota_record *r = &ota->record;
    uint8_t nonce[16];
    provisiond_ota_err err;

    if (ota->config.crypto->random(ota->config.crypto_ctx, nonce, sizeof nonce) != PROVISIOND_OTA_OK) {
        return PROVISIOND_OTA_CRYPTO;
    }
    err = read_manifest(ota, nonce);
    if (err == PROVISIOND_OTA_OK) {
        err = check_manifest(ota, nonce);
    }
    if (err != PROVISIOND_OTA_OK) {
        return err;
    }
    /* Bytes that were not those of their manifest say nothing against it. */
    if (r->phase == PROVISIOND_OTA_PHASE_BAD && r->why != PROVISIOND_OTA_HASH &&
        (same_update(ota) ||
         (r->why == PROVISIOND_OTA_OK && memcmp(r->sha256_plain, ota->manifest.sha256_plain, 32) == 0))) {
        return PROVISIOND_OTA_KNOWN_BAD;
    }
    /* It runs. A server that does not know our version does not make us write it to the
     * other slot, and then to this one, for ever. */
    if (r->phase == PROVISIOND_OTA_PHASE_CONFIRMED && r->address == ota->running.address &&
        memcmp(r->sha256_plain, ota->manifest.sha256_plain, 32) == 0) {
        return PROVISIOND_OTA_NOTHING_NEW;
    }
    if (r->phase == PROVISIOND_OTA_PHASE_WRITING && same_update(ota)) {
        return PROVISIOND_OTA_OK;
    }
    return begin(ota);
}

/* ---- the bytes ---------------------------------------------------------- */

/* Checks the head of an answer to a request for first..last. */
static provisiond_ota_err check_range(provisiond_ota *ota, bool conditional, uint32_t first, uint32_t last)
{
    const provisiond_ota_response *a = &ota->response;
    const provisiond_ota_record *r = &ota->record;
    if (a->status == 416 || (a->status == 200 && conditional)) {
        return PROVISIOND_OTA_CHANGED; /* they are shorter, or others (RFC 9110, 13.1.5) */
    }
    if (a->status != 206 && a->status != 200) {
        return of_status(ota);
    }
    if (a->bad || !a->has_length || !a->has_etag) {
        return PROVISIOND_OTA_PROTOCOL;
    }
    if (r->etag[0] != '\0' && strcmp(r->etag, a->etag) != 0) {
        return PROVISIOND_OTA_CHANGED;
    }
    if (a->status == 200) { /* a server may give all where a part was asked for */
        return first == 0 && a->length == r->length ? PROVISIOND_OTA_OK : PROVISIOND_OTA_RANGE;
    }
    if (!a->has_range || a->range_first != first || a->range_last != last || a->range_total != r->length ||
        a->length != last - first + 1) {
        return PROVISIOND_OTA_RANGE;
    }
    return PROVISIOND_OTA_OK;
}

/* Takes the body of one answer to the flash, a sector at a time. */
static provisiond_ota_err write_body(provisiond_ota *ota, uint32_t len, uint32_t *unsaved)
{
    const provisiond_ota_flash *f = ota->config.flash;
    provisiond_ota_record *r = &ota->record;
    while (len > 0) {
        uint32_t n = len < PROVISIOND_OTA_SECTOR ? len : PROVISIOND_OTA_SECTOR;
        provisiond_ota_err err = read_body(ota, ota->config.buffer, n);
        if (err != PROVISIOND_OTA_OK) {
            return err;
        }
        if (f->erase(ota->config.flash_ctx, &ota->next, r->written) != PROVISIOND_OTA_OK) {
            return PROVISIOND_OTA_FLASH_ERASE;
        }
        if (f->write(ota->config.flash_ctx, &ota->next, r->written, ota->config.buffer, n) != PROVISIOND_OTA_OK) {
            return PROVISIOND_OTA_FLASH_WRITE;
        }
        r->written += n;
        ota->fetched += n;
        len -= n;
        if (++*unsaved >= ota->config.save_every && r->written < r->length) {
            err = save(ota);
            if (err != PROVISIOND_OTA_OK) {
                return err;
            }
            *unsaved = 0;
        }
        if (ota->config.progress != NULL) {
            ota->config.progress(ota->config.progress_ctx, r->written, r->length);
        }
    }
    return PROVISIOND_OTA_OK;
}

static provisiond_ota_err fetch_part(provisiond_ota *ota, uint32_t *unsaved)
{
    provisiond_ota_record *r = &ota->record;
    provisiond_ota_request req;
    provisiond_ota_err err;
    uint32_t left = r->length - r->written;
    pvo_text t;

    unit_path(ota, &t, "/firmware?slot=");
    pvo_text_query(&t, r->slot);
    if (r->release[0] != '\0') {
        pvo_text_add(&t, "&release=");
        pvo_text_query(&t, r->release);
    }
    if (t.full) {
        return PROVISIOND_OTA_ARGUMENT;
    }
    memset(&req, 0, sizeof req);
    req.ranged = true;
    req.first = r->written;
    req.last = r->written + (left < ota->config.request_bytes ? left : ota->config.request_bytes) - 1;
    req.if_range = r->etag[0] != '\0' ? r->etag : NULL;
    err = request(ota, &req);
    if (err != PROVISIOND_OTA_OK) {
        return err;
    }
    err = check_range(ota, req.if_range != NULL, req.first, req.last);
    if (err == PROVISIOND_OTA_OK) {
        memcpy(r->etag, ota->response.etag, sizeof r->etag);
        err = write_body(ota, ota->response.length, unsaved);
    }
    finish(ota, err == PROVISIOND_OTA_OK);
    return err;
}

static provisiond_ota_err fetch(provisiond_ota *ota)
{
    uint32_t unsaved = 0;
    provisiond_ota_err err = PROVISIOND_OTA_OK;
    while (err == PROVISIOND_OTA_OK && ota->record.written < ota->record.length) {
        err = fetch_part(ota, &unsaved);
    }
    if (unsaved != 0) { /* what is written need not be fetched again */
        provisiond_ota_err kept = save(ota);
        err = err == PROVISIOND_OTA_OK ? kept : err;
    }
    return err;
}

/* Reads the slot back, raw, and compares it with the manifest. */
static provisiond_ota_err read_back(provisiond_ota *ota)
{
    const provisiond_ota_crypto *c = ota->config.crypto;
    void *ctx = ota->config.crypto_ctx;
    uint8_t sum[32];
    if (c->sha256_start(ctx) != PROVISIOND_OTA_OK) {
        return PROVISIOND_OTA_CRYPTO;
    }
    for (uint32_t at = 0; at < ota->manifest.length;) {
        uint32_t left = ota->manifest.length - at;
        uint32_t n = left < PROVISIOND_OTA_SECTOR ? left : PROVISIOND_OTA_SECTOR;
        if (ota->config.flash->read(ota->config.flash_ctx, &ota->next, at, ota->config.buffer, n) != PROVISIOND_OTA_OK) {
            return PROVISIOND_OTA_FLASH_READ;
        }
        if (c->sha256_update(ctx, ota->config.buffer, n) != PROVISIOND_OTA_OK) {
            return PROVISIOND_OTA_CRYPTO;
        }
        at += n;
    }
    if (c->sha256_finish(ctx, sum) != PROVISIOND_OTA_OK) {
        return PROVISIOND_OTA_CRYPTO;
    }
    return memcmp(sum, ota->manifest.sha256_cipher, 32) == 0 ? PROVISIOND_OTA_OK : PROVISIOND_OTA_HASH;
}

static provisiond_ota_err switch_over(provisiond_ota *ota)
{
    provisiond_ota_record *r = &ota->record;
    provisiond_ota_state state = PROVISIOND_OTA_STATE_UNKNOWN;
    provisiond_ota_err err, kept;
    err = ota->config.flash->state(ota->config.flash_ctx, &ota->next, &state);
    if (err != PROVISIOND_OTA_OK) {
        return err;
    }
    r->phase = PROVISIOND_OTA_PHASE_SWITCHING;
    r->rejected = state == PROVISIOND_OTA_STATE_REJECTED;
    err = save(ota);
    if (err != PROVISIOND_OTA_OK) {
        return err;
    }
    err = ota->config.flash->set_boot(ota->config.flash_ctx, &ota->next);
    if (err == PROVISIOND_OTA_VALIDATE || err == PROVISIOND_OTA_SECURE_VERSION) {
        kept = bad_record(ota, err);
        if (kept == PROVISIOND_OTA_OK) {
            (void)provisiond_ota_report(ota); /* again with the next call, if it fails */
        }
        return err;
    }
    if (err != PROVISIOND_OTA_OK) {
        r->phase = PROVISIOND_OTA_PHASE_WRITING;
        kept = save(ota);
        return kept == PROVISIOND_OTA_OK ? PROVISIOND_OTA_SET_BOOT : kept;
    }
    ota->switched_now = true;
    r->phase = PROVISIOND_OTA_PHASE_SWITCHED;
    r->told = false;
    /* The choice is made. If this record is lost, the next boot finds out. */
    (void)save(ota);
    (void)provisiond_ota_report(ota);
    return PROVISIOND_OTA_OK;
}

provisiond_ota_err provisiond_ota_update(provisiond_ota *ota)
{
    provisiond_ota_state state = PROVISIOND_OTA_STATE_UNKNOWN;
    provisiond_ota_err err;
    bool resumed;

    if (ota->switched_now) {
        return PROVISIOND_OTA_OK; /* the slot that boots next is not touched any more */
    }
    /* Until the running image is confirmed, the other slot is the way back. */
    err = ota->config.flash->state(ota->config.flash_ctx, &ota->running, &state);
    if (err != PROVISIOND_OTA_OK) {
        return err;
    }
    if (state == PROVISIOND_OTA_STATE_PENDING || ota->boot == PROVISIOND_OTA_BOOT_NEW) {
        return PROVISIOND_OTA_PENDING_VERIFY;
    }
    err = provisiond_ota_report(ota);
    if (err != PROVISIOND_OTA_OK && !final_answer(err)) {
        return err; /* what is not told must not be forgotten for a new update */
    }
    for (int tries = 0; tries < MAX_TRIES; tries++) {
        err = ask(ota);
        if (err != PROVISIOND_OTA_OK) {
            return err;
        }
        resumed = ota->record.written > 0;
        err = fetch(ota);
        if (err == PROVISIOND_OTA_OK) {
            err = read_back(ota);
        }
        if (err == PROVISIOND_OTA_OK) {
            return switch_over(ota);
        }
        if (err != PROVISIOND_OTA_CHANGED && err != PROVISIOND_OTA_HASH) {
            return err; /* goes on from here the next time */
        }
        /* What lies in the slot is of no use. */
        if (err == PROVISIOND_OTA_HASH && !resumed) {
            break;
        }
        if (clear_record(ota) != PROVISIOND_OTA_OK) {
            return PROVISIOND_OTA_RECORD;
        }
    }
    if (err == PROVISIOND_OTA_HASH) {
        if (bad_record(ota, err) != PROVISIOND_OTA_OK) {
            return PROVISIOND_OTA_RECORD;
        }
        (void)provisiond_ota_report(ota); /* again with the next call, if it fails */
        return err;
    }
    return clear_record(ota) == PROVISIOND_OTA_OK ? err : PROVISIOND_OTA_RECORD;
}
