/*
 * The tables on a device. This file was written against ESP-IDF's sources and checked
 * with its headers; our tests run it on the host over stand-ins for ESP-IDF's functions
 * (host/idf). No toolchain of Espressif's and no chip has seen it yet.
 */
#include "provisiond_ota_esp.h"

#include "internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "esp_app_desc.h"
#include "esp_mac.h"
#include "esp_ota_ops.h"
#include "nvs.h"
#include "sdkconfig.h"

/* ---- transport: esp_http_client ----------------------------------------- */

static esp_err_t on_event(esp_http_client_event_t *event)
{
    provisiond_ota_esp *esp = event->user_data;
    if (event->event_id == HTTP_EVENT_ON_HEADER && esp->response != NULL) {
        provisiond_ota_response_header(esp->response, event->header_key, event->header_value);
    }
    return ESP_OK;
}

/* An answer that was not read to its end leaves bytes in the client, which not every
 * version of ESP-IDF can be asked to drop: the next request takes a new one. */
static void hang_up(provisiond_ota_esp *esp)
{
    if (esp->http != NULL) {
        (void)esp_http_client_cleanup(esp->http);
    }
    esp->http = NULL;
    esp->connected = false;
}

/* Sets a header field, or takes away the one of an earlier request. */
static bool header(provisiond_ota_esp *esp, const char *name, const char *value)
{
    if (value == NULL) {
        (void)esp_http_client_delete_header(esp->http, name); /* not there: as well */
        return true;
    }
    return esp_http_client_set_header(esp->http, name, value) == ESP_OK; /* it copies the value */
}

static bool prepare(provisiond_ota_esp *esp, const provisiond_ota_request *req)
{
    char range[32];
    pvo_text t;

    pvo_text_start(&t, esp->url, sizeof esp->url);
    pvo_text_add(&t, esp->base);
    pvo_text_add(&t, req->path);
    if (t.full || esp_http_client_set_url(esp->http, esp->url) != ESP_OK ||
        esp_http_client_set_method(esp->http, req->post ? HTTP_METHOD_POST : HTTP_METHOD_GET) != ESP_OK) {
        return false;
    }
    (void)snprintf(range, sizeof range, "bytes=%" PRIu32 "-%" PRIu32, req->first, req->last);
    pvo_text_start(&t, esp->header, sizeof esp->header);
    if (req->token != NULL) {
        pvo_text_add(&t, "Bearer ");
        pvo_text_add(&t, req->token);
    }
    return !t.full && header(esp, "Authorization", req->token != NULL ? esp->header : NULL) &&
           header(esp, "Range", req->ranged ? range : NULL) && header(esp, "If-Range", req->if_range) &&
           header(esp, "Content-Type", req->post ? "application/json" : NULL);
}

static provisiond_ota_err send_once(provisiond_ota_esp *esp, const provisiond_ota_request *req, provisiond_ota_response *resp)
{
    esp_err_t err;
    int64_t len;

    memset(resp, 0, sizeof *resp);
    if (esp->http == NULL) {
        esp->http = esp_http_client_init(&esp->http_config);
    }
    if (esp->http == NULL) {
        return PROVISIOND_OTA_CONNECT;
    }
    if (!prepare(esp, req)) {
        return PROVISIOND_OTA_ARGUMENT;
    }
    err = esp_http_client_open(esp->http, req->post ? (int)req->body_len : 0);
    if (err != ESP_OK) {
        return err == ESP_ERR_HTTP_CONNECT ? PROVISIOND_OTA_CONNECT : PROVISIOND_OTA_TRANSPORT;
    }
    if (req->post && esp_http_client_write(esp->http, req->body, (int)req->body_len) != (int)req->body_len) {
        return PROVISIOND_OTA_TRANSPORT;
    }
    esp->response = resp;
    len = esp_http_client_fetch_headers(esp->http);
    esp->response = NULL;
    if (len < 0) {
        return PROVISIOND_OTA_TRANSPORT;
    }
    resp->status = esp_http_client_get_status_code(esp->http);
    return PROVISIOND_OTA_OK;
}

static provisiond_ota_err http_request(void *ctx, const provisiond_ota_request *req, provisiond_ota_response *resp)
{
    provisiond_ota_esp *esp = ctx;
    bool again = esp->connected;
    provisiond_ota_err err = send_once(esp, req, resp);

    if (err != PROVISIOND_OTA_OK) {
        hang_up(esp);
        if (again && err == PROVISIOND_OTA_TRANSPORT) { /* a server may close a kept connection just when it is used again */
            err = send_once(esp, req, resp);
            if (err != PROVISIOND_OTA_OK) {
                hang_up(esp);
            }
        }
    }
    esp->connected = false; /* until this answer is read */
    return err;
}

static provisiond_ota_err http_read(void *ctx, uint8_t *buf, size_t len, size_t *got)
{
    provisiond_ota_esp *esp = ctx;
    int n = esp_http_client_read(esp->http, (char *)buf, (int)len);
    *got = n > 0 ? (size_t)n : 0;
    return n >= 0 ? PROVISIOND_OTA_OK : PROVISIOND_OTA_TRANSPORT;
}

static void http_finish(void *ctx, bool complete)
{
    provisiond_ota_esp *esp = ctx;
    if (complete) {
        esp->connected = true;
    } else {
        hang_up(esp);
    }
}

static const provisiond_ota_transport transport = {http_request, http_read, http_finish};

/* ---- flash: esp_partition, esp_ota_ops, NVS ----------------------------- */

static const char nvs_space[] = "provisiond_ota";
static const char nvs_key[] = "record";

static void to_slot(provisiond_ota_slot *slot, const esp_partition_t *p)
{
    memset(slot, 0, sizeof *slot);
    /* By number: the label may be anything. */
    if (p->subtype >= ESP_PARTITION_SUBTYPE_APP_OTA_MIN && p->subtype < ESP_PARTITION_SUBTYPE_APP_OTA_MAX) {
        (void)snprintf(slot->name, sizeof slot->name, "ota_%u", (unsigned)(p->subtype - ESP_PARTITION_SUBTYPE_APP_OTA_MIN) & 15u);
    } else {
        (void)snprintf(slot->name, sizeof slot->name, "%s", p->subtype == ESP_PARTITION_SUBTYPE_APP_FACTORY ? "factory" : "test");
    }
    slot->address = p->address;
    slot->size = p->size;
}

static provisiond_ota_err flash_slots(void *ctx, provisiond_ota_slot *running, provisiond_ota_slot *next)
{
    provisiond_ota_esp *esp = ctx;
    esp->running = esp_ota_get_running_partition();
    esp->next = esp_ota_get_next_update_partition(NULL);
    if (esp->running == NULL || esp->next == NULL) {
        return PROVISIOND_OTA_PARTITION;
    }
    to_slot(running, esp->running);
    to_slot(next, esp->next);
    return PROVISIOND_OTA_OK;
}

/* The client knows two slots by address; all others are none of its business. */
static const esp_partition_t *of_slot(const provisiond_ota_esp *esp, const provisiond_ota_slot *slot)
{
    if (slot->address == esp->next->address) {
        return esp->next;
    }
    return slot->address == esp->running->address ? esp->running : NULL;
}

static provisiond_ota_err flash_state(void *ctx, const provisiond_ota_slot *slot, provisiond_ota_state *state)
{
    const esp_partition_t *p = of_slot(ctx, slot);
    esp_ota_img_states_t s = ESP_OTA_IMG_UNDEFINED;
    esp_err_t err;
    *state = PROVISIOND_OTA_STATE_UNKNOWN;
    if (p == NULL) {
        return PROVISIOND_OTA_OK; /* the table of partitions is another one by now */
    }
    err = esp_ota_get_state_partition(p, &s);
    if (err == ESP_ERR_NOT_FOUND || err == ESP_ERR_NOT_SUPPORTED) { /* never chosen, or factory */
        return PROVISIOND_OTA_OK;
    }
    if (err != ESP_OK) {
        return PROVISIOND_OTA_PARTITION;
    }
    switch (s) {
    case ESP_OTA_IMG_NEW:
        *state = PROVISIOND_OTA_STATE_NEW;
        break;
    case ESP_OTA_IMG_PENDING_VERIFY:
        *state = PROVISIOND_OTA_STATE_PENDING;
        break;
    case ESP_OTA_IMG_VALID:
        *state = PROVISIOND_OTA_STATE_VALID;
        break;
    case ESP_OTA_IMG_INVALID:
    case ESP_OTA_IMG_ABORTED:
        *state = PROVISIOND_OTA_STATE_REJECTED;
        break;
    default:
        break;
    }
    return PROVISIOND_OTA_OK;
}

/* Nothing but the next slot is ever changed. */
static const esp_partition_t *target(const provisiond_ota_esp *esp, const provisiond_ota_slot *slot)
{
    return slot->address == esp->next->address ? esp->next : NULL;
}

static provisiond_ota_err flash_erase(void *ctx, const provisiond_ota_slot *slot, uint32_t offset)
{
    const esp_partition_t *p = target(ctx, slot);
    return p != NULL && esp_partition_erase_range(p, offset, PROVISIOND_OTA_SECTOR) == ESP_OK
               ? PROVISIOND_OTA_OK
               : PROVISIOND_OTA_FLASH_ERASE;
}

static provisiond_ota_err flash_write(void *ctx, const provisiond_ota_slot *slot, uint32_t offset, const uint8_t *data, uint32_t len)
{
    const esp_partition_t *p = target(ctx, slot);
    return p != NULL && esp_partition_write_raw(p, offset, data, len) == ESP_OK ? PROVISIOND_OTA_OK
                                                                                : PROVISIOND_OTA_FLASH_WRITE;
}

static provisiond_ota_err flash_read(void *ctx, const provisiond_ota_slot *slot, uint32_t offset, uint8_t *data, uint32_t len)
{
    const esp_partition_t *p = target(ctx, slot);
    return p != NULL && esp_partition_read_raw(p, offset, data, len) == ESP_OK ? PROVISIOND_OTA_OK
                                                                               : PROVISIOND_OTA_FLASH_READ;
}

static provisiond_ota_err flash_set_boot(void *ctx, const provisiond_ota_slot *slot)
{
    const esp_partition_t *p = target(ctx, slot);
    if (p == NULL) {
        return PROVISIOND_OTA_SET_BOOT;
    }
    switch (esp_ota_set_boot_partition(p)) { /* checks the image through the decrypting cache first */
    case ESP_OK:
        return PROVISIOND_OTA_OK;
    case ESP_ERR_OTA_VALIDATE_FAILED:
        return PROVISIOND_OTA_VALIDATE;
    case ESP_ERR_OTA_SMALL_SEC_VER:
        return PROVISIOND_OTA_SECURE_VERSION;
    default:
        return PROVISIOND_OTA_SET_BOOT;
    }
}

static provisiond_ota_err flash_confirm(void *ctx)
{
    (void)ctx;
    return esp_ota_mark_app_valid_cancel_rollback() == ESP_OK ? PROVISIOND_OTA_OK : PROVISIOND_OTA_CONFIRM;
}

static provisiond_ota_err flash_load(void *ctx, uint8_t *record, size_t cap, size_t *len)
{
    nvs_handle_t h;
    esp_err_t err = nvs_open(nvs_space, NVS_READONLY, &h);
    (void)ctx;
    *len = 0;
    if (err == ESP_ERR_NVS_NOT_FOUND) { /* nothing was ever kept */
        return PROVISIOND_OTA_OK;
    }
    if (err != ESP_OK) {
        return PROVISIOND_OTA_RECORD;
    }
    *len = cap;
    err = nvs_get_blob(h, nvs_key, record, len);
    nvs_close(h);
    if (err == ESP_OK) {
        return PROVISIOND_OTA_OK;
    }
    *len = 0;
    /* One of another size is not this version's: it counts as none. */
    return err == ESP_ERR_NVS_NOT_FOUND || err == ESP_ERR_NVS_INVALID_LENGTH ? PROVISIOND_OTA_OK : PROVISIOND_OTA_RECORD;
}

static provisiond_ota_err flash_save(void *ctx, const uint8_t *record, size_t len)
{
    nvs_handle_t h;
    esp_err_t err = nvs_open(nvs_space, NVS_READWRITE, &h);
    (void)ctx;
    if (err != ESP_OK) {
        return PROVISIOND_OTA_RECORD;
    }
    err = nvs_set_blob(h, nvs_key, record, len);
    if (err == ESP_OK) {
        err = nvs_commit(h);
    }
    nvs_close(h);
    return err == ESP_OK ? PROVISIOND_OTA_OK : PROVISIOND_OTA_RECORD;
}

static const provisiond_ota_flash flash = {
    flash_slots, flash_state, flash_erase, flash_write, flash_read, flash_set_boot, flash_confirm, flash_load, flash_save,
};

/* ---- start -------------------------------------------------------------- */

provisiond_ota_err provisiond_ota_esp_init(provisiond_ota_esp *esp, const provisiond_ota_esp_config *config)
{
    const esp_app_desc_t *app = esp_app_get_description();
    esp_http_client_config_t *http;
    provisiond_ota_config c;

    if (esp == NULL || config == NULL || config->url == NULL || strlen(config->url) > PROVISIOND_OTA_ESP_URL_MAX) {
        return PROVISIOND_OTA_ARGUMENT;
    }
    memset(esp, 0, sizeof *esp);
    memset(&c, 0, sizeof c);
    http = &esp->http_config;
    if (provisiond_ota_psa_init(&esp->psa) != PROVISIOND_OTA_OK || esp_efuse_mac_get_default(c.mac) != ESP_OK) {
        return PROVISIOND_OTA_CRYPTO;
    }
    esp->base = config->url;
    http->url = config->url;
    http->cert_pem = config->cert_pem;
    http->crt_bundle_attach = config->crt_bundle_attach;
    http->client_cert_pem = config->client_cert_pem;
    http->client_key_pem = config->client_key_pem;
    http->timeout_ms = config->timeout_ms > 0 ? config->timeout_ms : 15000;
    http->disable_auto_redirect = true;
    http->max_authorization_retries = -1;
    http->event_handler = on_event;
    http->user_data = esp;
    http->buffer_size = 2048;    /* of a read */
    http->buffer_size_tx = 1024; /* the request line and each header field must fit */
    esp->http = esp_http_client_init(http);
    if (esp->http == NULL) {
        return PROVISIOND_OTA_CONNECT;
    }

    c.chip = CONFIG_IDF_TARGET;
    c.token = config->token;
    memcpy(c.public_key, config->public_key, sizeof c.public_key);
    c.version = app->version;
    c.secure_version = app->secure_version;
    c.request_bytes = config->request_bytes;
    c.save_every = config->save_every;
    c.transport = &transport;
    c.transport_ctx = esp;
    c.flash = &flash;
    c.flash_ctx = esp;
    c.crypto = &provisiond_ota_crypto_psa;
    c.crypto_ctx = &esp->psa;
    c.buffer = esp->buffer;
    c.buffer_len = sizeof esp->buffer;
    c.progress = config->progress;
    c.progress_ctx = config->progress_ctx;
    return provisiond_ota_init(&esp->client, &c);
}
