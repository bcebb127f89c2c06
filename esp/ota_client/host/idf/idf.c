/* ESP-IDF's functions for src/port_esp.c on the host: flash, otadata and NVS are the
 * simulated board's (../board.h), the HTTP client is the host's (../http.h). This
 * shows that the port calls in the right order and takes answers rightly; what the real
 * functions do beyond that, only a chip can show. */
#include "../board.h"
#include "../http.h"
#include "../options.h"
#include "provisiond_ota_esp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *idf_target;
static host_options options;
static esp_app_desc_t app;
static esp_partition_t running, next;
static provisiond_ota_slot running_slot, next_slot;

/* ---- the chip ----------------------------------------------------------- */

const esp_app_desc_t *esp_app_get_description(void)
{
    return &app;
}

esp_err_t esp_efuse_mac_get_default(uint8_t *mac)
{
    memcpy(mac, options.config.mac, 6);
    return ESP_OK;
}

static void to_partition(esp_partition_t *p, const provisiond_ota_slot *s)
{
    unsigned n = 0;
    p->subtype = ESP_PARTITION_SUBTYPE_APP_FACTORY;
    if (sscanf(s->name, "ota_%u", &n) == 1) {
        p->subtype = (esp_partition_subtype_t)(ESP_PARTITION_SUBTYPE_APP_OTA_MIN + n);
    }
    p->address = s->address;
    p->size = s->size;
}

static bool look(void)
{
    if (host_board.slots(NULL, &running_slot, &next_slot) != PROVISIOND_OTA_OK) {
        return false;
    }
    to_partition(&running, &running_slot);
    to_partition(&next, &next_slot);
    return true;
}

const esp_partition_t *esp_ota_get_running_partition(void)
{
    return look() ? &running : NULL;
}

const esp_partition_t *esp_ota_get_next_update_partition(const esp_partition_t *start_from)
{
    return start_from == NULL && look() ? &next : NULL;
}

static const provisiond_ota_slot *slot_of(const esp_partition_t *p)
{
    return p == &next ? &next_slot : p == &running ? &running_slot : NULL;
}

/* Within the partition, as esp_partition has it. */
static bool within(const esp_partition_t *p, size_t offset, size_t size)
{
    return slot_of(p) != NULL && offset <= p->size && size <= p->size - offset;
}

esp_err_t esp_partition_erase_range(const esp_partition_t *p, size_t offset, size_t size)
{
    if (!within(p, offset, size) || offset % PROVISIOND_OTA_SECTOR != 0 || size != PROVISIOND_OTA_SECTOR) {
        return ESP_ERR_INVALID_ARG;
    }
    return host_board.erase(NULL, slot_of(p), (uint32_t)offset) == PROVISIOND_OTA_OK ? ESP_OK : ESP_FAIL;
}

esp_err_t esp_partition_write_raw(const esp_partition_t *p, size_t offset, const void *src, size_t size)
{
    if (!within(p, offset, size)) {
        return ESP_ERR_INVALID_ARG;
    }
    return host_board.write(NULL, slot_of(p), (uint32_t)offset, src, (uint32_t)size) == PROVISIOND_OTA_OK ? ESP_OK : ESP_FAIL;
}

esp_err_t esp_partition_read_raw(const esp_partition_t *p, size_t offset, void *dst, size_t size)
{
    if (!within(p, offset, size)) {
        return ESP_ERR_INVALID_ARG;
    }
    return host_board.read(NULL, slot_of(p), (uint32_t)offset, dst, (uint32_t)size) == PROVISIOND_OTA_OK ? ESP_OK : ESP_FAIL;
}

esp_err_t esp_ota_get_state_partition(const esp_partition_t *p, esp_ota_img_states_t *state)
{
    provisiond_ota_state s = PROVISIOND_OTA_STATE_UNKNOWN;
    if (slot_of(p) == NULL) {
        return ESP_ERR_INVALID_ARG;
    }
    if (p->subtype < ESP_PARTITION_SUBTYPE_APP_OTA_MIN) {
        return ESP_ERR_NOT_SUPPORTED;
    }
    if (host_board.state(NULL, slot_of(p), &s) != PROVISIOND_OTA_OK) {
        return ESP_FAIL;
    }
    switch (s) {
    case PROVISIOND_OTA_STATE_NEW:
        *state = ESP_OTA_IMG_NEW;
        break;
    case PROVISIOND_OTA_STATE_PENDING:
        *state = ESP_OTA_IMG_PENDING_VERIFY;
        break;
    case PROVISIOND_OTA_STATE_VALID:
        *state = ESP_OTA_IMG_VALID;
        break;
    case PROVISIOND_OTA_STATE_REJECTED:
        *state = ESP_OTA_IMG_ABORTED;
        break;
    default:
        return ESP_ERR_NOT_FOUND;
    }
    return ESP_OK;
}

esp_err_t esp_ota_set_boot_partition(const esp_partition_t *p)
{
    if (slot_of(p) == NULL) {
        return ESP_ERR_INVALID_ARG;
    }
    switch (host_board.set_boot(NULL, slot_of(p))) {
    case PROVISIOND_OTA_OK:
        return ESP_OK;
    case PROVISIOND_OTA_VALIDATE:
        return ESP_ERR_OTA_VALIDATE_FAILED;
    case PROVISIOND_OTA_SECURE_VERSION:
        return ESP_ERR_OTA_SMALL_SEC_VER;
    default:
        return ESP_FAIL;
    }
}

esp_err_t esp_ota_mark_app_valid_cancel_rollback(void)
{
    return host_board.confirm(NULL) == PROVISIOND_OTA_OK ? ESP_OK : ESP_FAIL;
}

/* ---- NVS: one blob, that is stored with nvs_commit ------------------------ */

static uint8_t blob[PROVISIOND_OTA_RECORD_MAX];
static size_t blob_len;
static int handles;

esp_err_t nvs_open(const char *space, nvs_open_mode_t mode, nvs_handle_t *out)
{
    if (strlen(space) > 15) { /* as NVS has it */
        return ESP_ERR_INVALID_ARG;
    }
    if (host_board.load(NULL, blob, sizeof blob, &blob_len) != PROVISIOND_OTA_OK) {
        return ESP_FAIL;
    }
    if (mode == NVS_READONLY && blob_len == 0) {
        return ESP_ERR_NVS_NOT_FOUND; /* such a namespace is not there yet */
    }
    *out = (nvs_handle_t)++handles;
    return handles == 1 ? ESP_OK : ESP_FAIL; /* one that was not closed */
}

esp_err_t nvs_get_blob(nvs_handle_t h, const char *key, void *out, size_t *len)
{
    if (h != 1 || strlen(key) > 15) {
        return ESP_ERR_INVALID_ARG;
    }
    if (blob_len == 0) {
        return ESP_ERR_NVS_NOT_FOUND;
    }
    if (*len < blob_len) {
        return ESP_ERR_NVS_INVALID_LENGTH;
    }
    memcpy(out, blob, blob_len);
    *len = blob_len;
    return ESP_OK;
}

esp_err_t nvs_set_blob(nvs_handle_t h, const char *key, const void *value, size_t len)
{
    if (h != 1 || strlen(key) > 15 || len > sizeof blob) {
        return ESP_ERR_INVALID_ARG;
    }
    memcpy(blob, value, len);
    blob_len = len;
    return ESP_OK;
}

esp_err_t nvs_commit(nvs_handle_t h)
{
    return h == 1 && host_board.save(NULL, blob, blob_len) == PROVISIOND_OTA_OK ? ESP_OK : ESP_FAIL;
}

void nvs_close(nvs_handle_t h)
{
    (void)h;
    handles--;
}

/* ---- esp_http_client ---------------------------------------------------- */

struct esp_http_client {
    esp_http_client_config_t config;
    host_http http;
    provisiond_ota_response response;
    char url[1024];
    bool post, open;
    struct {
        char key[24], value[320];
    } headers[8];
    char body[1024];
    int body_len, body_got;
};

esp_http_client_handle_t esp_http_client_init(const esp_http_client_config_t *config)
{
    esp_http_client_handle_t c = calloc(1, sizeof *c);
    if (c != NULL) {
        c->config = *config;
        host_http_init(&c->http, options.host, options.port, config->timeout_ms);
    }
    return c;
}

esp_err_t esp_http_client_cleanup(esp_http_client_handle_t c)
{
    host_http_close(&c->http);
    free(c);
    return ESP_OK;
}

esp_err_t esp_http_client_set_url(esp_http_client_handle_t c, const char *url)
{
    return snprintf(c->url, sizeof c->url, "%s", url) < (int)sizeof c->url ? ESP_OK : ESP_FAIL;
}

esp_err_t esp_http_client_set_method(esp_http_client_handle_t c, esp_http_client_method_t method)
{
    c->post = method == HTTP_METHOD_POST;
    return ESP_OK;
}

static int find(esp_http_client_handle_t c, const char *key)
{
    for (int i = 0; i < 8; i++) {
        if (strcmp(c->headers[i].key, key) == 0) {
            return i;
        }
    }
    return -1;
}

esp_err_t esp_http_client_set_header(esp_http_client_handle_t c, const char *key, const char *value)
{
    int i = find(c, key);
    if (i < 0) {
        i = find(c, "");
    }
    if (i < 0 || strlen(key) >= sizeof c->headers[i].key || strlen(value) >= sizeof c->headers[i].value) {
        return ESP_FAIL;
    }
    memcpy(c->headers[i].key, key, strlen(key) + 1);
    memcpy(c->headers[i].value, value, strlen(value) + 1);
    return ESP_OK;
}

esp_err_t esp_http_client_delete_header(esp_http_client_handle_t c, const char *key)
{
    int i = find(c, key);
    if (i < 0) {
        return ESP_ERR_NOT_FOUND;
    }
    c->headers[i].key[0] = '\0';
    return ESP_OK;
}

esp_err_t esp_http_client_open(esp_http_client_handle_t c, int write_len)
{
    c->body_len = write_len;
    c->body_got = 0;
    c->open = true;
    return write_len <= (int)sizeof c->body ? ESP_OK : ESP_FAIL;
}

int esp_http_client_write(esp_http_client_handle_t c, const char *buffer, int len)
{
    if (!c->open || len > c->body_len - c->body_got) {
        return -1;
    }
    memcpy(c->body + c->body_got, buffer, (size_t)len);
    c->body_got += len;
    return len;
}

static const char *value_of(esp_http_client_handle_t c, const char *key)
{
    int i = find(c, key);
    return i < 0 ? NULL : c->headers[i].value;
}

static void event(esp_http_client_handle_t c, const char *key, char *value)
{
    esp_http_client_event_t e;
    char name[24];
    (void)snprintf(name, sizeof name, "%s", key);
    e.event_id = HTTP_EVENT_ON_HEADER;
    e.user_data = c->config.user_data;
    e.header_key = name;
    e.header_value = value;
    (void)c->config.event_handler(&e);
}

/* Tells the fields as they were read. */
static void tell(esp_http_client_handle_t c)
{
    const provisiond_ota_response *r = &c->response;
    char v[64], etag[PROVISIOND_OTA_ETAG_MAX + 1], chunked[] = "chunked";
    if (r->bad) { /* one of those that the port has to refuse too */
        event(c, "Transfer-Encoding", chunked);
    }
    if (r->has_length) {
        (void)snprintf(v, sizeof v, "%lu", (unsigned long)r->length);
        event(c, "Content-Length", v);
    }
    if (r->has_range) {
        (void)snprintf(v, sizeof v, "bytes %lu-%lu/%lu", (unsigned long)r->range_first, (unsigned long)r->range_last,
                       (unsigned long)r->range_total);
        event(c, "Content-Range", v);
    }
    if (r->has_etag) {
        memcpy(etag, r->etag, sizeof etag);
        event(c, "ETag", etag);
    }
    if (r->has_retry) {
        (void)snprintf(v, sizeof v, "%lu", (unsigned long)r->retry_after);
        event(c, "Retry-After", v);
    }
}

int64_t esp_http_client_fetch_headers(esp_http_client_handle_t c)
{
    static const char base[] = "https://host.test", bearer[] = "Bearer ";
    provisiond_ota_request req;
    const char *v;
    unsigned long first = 0, last = 0;

    if (!c->open || c->body_got != c->body_len || strncmp(c->url, base, sizeof base - 1) != 0) {
        return ESP_FAIL;
    }
    memset(&req, 0, sizeof req);
    req.post = c->post;
    req.path = c->url + sizeof base - 1;
    v = value_of(c, "Authorization");
    req.token = v != NULL && strncmp(v, bearer, sizeof bearer - 1) == 0 ? v + sizeof bearer - 1 : NULL;
    v = value_of(c, "Range");
    if (v != NULL) {
        req.ranged = sscanf(v, "bytes=%lu-%lu", &first, &last) == 2;
        req.first = (uint32_t)first;
        req.last = (uint32_t)last;
    }
    req.if_range = value_of(c, "If-Range");
    req.body = c->body;
    req.body_len = (size_t)c->body_len;
    if (host_http_transport.request(&c->http, &req, &c->response) != PROVISIOND_OTA_OK) {
        return ESP_FAIL;
    }
    tell(c);
    return c->response.has_length ? c->response.length : 0;
}

int esp_http_client_get_status_code(esp_http_client_handle_t c)
{
    return c->response.status;
}

int esp_http_client_read(esp_http_client_handle_t c, char *buffer, int len)
{
    size_t got = 0;
    if (host_http_transport.read(&c->http, (uint8_t *)buffer, (size_t)len, &got) != PROVISIOND_OTA_OK) {
        return ESP_FAIL;
    }
    return (int)got;
}

/* ---- the program -------------------------------------------------------- */

static provisiond_ota_esp esp;

int main(int argc, char **argv)
{
    provisiond_ota_esp_config config;
    provisiond_ota_err err;
    int code, first = host_options_parse(&options, argc, argv);
    if (first < 0) {
        return -first;
    }
    idf_target = options.config.chip;
    app.secure_version = options.config.secure_version;
    (void)snprintf(app.version, sizeof app.version, "%s", options.config.version == NULL ? "" : options.config.version);
    memset(&config, 0, sizeof config);
    config.url = "https://host.test";
    config.timeout_ms = (int)options.timeout_ms;
    config.token = options.config.token;
    memcpy(config.public_key, options.config.public_key, sizeof config.public_key);
    config.request_bytes = options.config.request_bytes;
    config.save_every = options.config.save_every;
    err = provisiond_ota_esp_init(&esp, &config);
    code = host_run(&esp.client, err, argc, argv, first);
    if (esp.http != NULL) {
        (void)esp_http_client_cleanup(esp.http);
    }
    return code;
}
