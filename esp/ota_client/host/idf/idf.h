/* What src/port_esp.c uses of ESP-IDF, declared by us so that the port can be compiled
 * and run on the host (idf.c). Names, types and numbers are ESP-IDF's; the real headers
 * decide, and the port was checked against them too (README). Every header of ESP-IDF
 * that the port includes is a line that includes this one. */
#ifndef PROVISIOND_OTA_HOST_IDF_H
#define PROVISIOND_OTA_HOST_IDF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* esp_err.h, nvs.h, esp_ota_ops.h, esp_http_client.h: errors */
typedef int esp_err_t;
#define ESP_OK 0
#define ESP_FAIL (-1)
#define ESP_ERR_INVALID_ARG 0x102
#define ESP_ERR_NOT_FOUND 0x105
#define ESP_ERR_NOT_SUPPORTED 0x106
#define ESP_ERR_NVS_NOT_FOUND 0x1102
#define ESP_ERR_NVS_INVALID_LENGTH 0x110c
#define ESP_ERR_OTA_VALIDATE_FAILED 0x1503
#define ESP_ERR_OTA_SMALL_SEC_VER 0x1504
#define ESP_ERR_HTTP_CONNECT 0x7002

/* esp_app_desc.h */
typedef struct {
    uint32_t secure_version;
    char version[32];
} esp_app_desc_t;
const esp_app_desc_t *esp_app_get_description(void);

/* esp_mac.h */
esp_err_t esp_efuse_mac_get_default(uint8_t *mac);

/* esp_partition.h */
typedef enum {
    ESP_PARTITION_SUBTYPE_APP_FACTORY = 0x00,
    ESP_PARTITION_SUBTYPE_APP_OTA_MIN = 0x10,
    ESP_PARTITION_SUBTYPE_APP_OTA_MAX = 0x20
} esp_partition_subtype_t;
typedef struct {
    esp_partition_subtype_t subtype;
    uint32_t address, size;
} esp_partition_t;
esp_err_t esp_partition_erase_range(const esp_partition_t *partition, size_t offset, size_t size);
esp_err_t esp_partition_write_raw(const esp_partition_t *partition, size_t offset, const void *src, size_t size);
esp_err_t esp_partition_read_raw(const esp_partition_t *partition, size_t offset, void *dst, size_t size);

/* esp_ota_ops.h */
typedef enum {
    ESP_OTA_IMG_NEW = 0,
    ESP_OTA_IMG_PENDING_VERIFY = 1,
    ESP_OTA_IMG_VALID = 2,
    ESP_OTA_IMG_INVALID = 3,
    ESP_OTA_IMG_ABORTED = 4,
    ESP_OTA_IMG_UNDEFINED = 0x7FFFFFFF /* all ones there; an enum of ISO C has no room for it */
} esp_ota_img_states_t;
const esp_partition_t *esp_ota_get_running_partition(void);
const esp_partition_t *esp_ota_get_next_update_partition(const esp_partition_t *start_from);
esp_err_t esp_ota_get_state_partition(const esp_partition_t *partition, esp_ota_img_states_t *state);
esp_err_t esp_ota_set_boot_partition(const esp_partition_t *partition);
esp_err_t esp_ota_mark_app_valid_cancel_rollback(void);

/* nvs.h */
typedef uint32_t nvs_handle_t;
typedef enum { NVS_READONLY, NVS_READWRITE } nvs_open_mode_t;
esp_err_t nvs_open(const char *space, nvs_open_mode_t mode, nvs_handle_t *out);
esp_err_t nvs_get_blob(nvs_handle_t h, const char *key, void *out, size_t *len);
esp_err_t nvs_set_blob(nvs_handle_t h, const char *key, const void *value, size_t len);
esp_err_t nvs_commit(nvs_handle_t h);
void nvs_close(nvs_handle_t h);

/* esp_http_client.h */
typedef struct esp_http_client *esp_http_client_handle_t;
typedef enum { HTTP_EVENT_ERROR, HTTP_EVENT_ON_HEADER } esp_http_client_event_id_t;
typedef enum { HTTP_METHOD_GET, HTTP_METHOD_POST } esp_http_client_method_t;
typedef struct {
    esp_http_client_event_id_t event_id;
    void *user_data;
    char *header_key, *header_value;
} esp_http_client_event_t;
typedef struct {
    const char *url, *cert_pem, *client_cert_pem, *client_key_pem;
    int timeout_ms;
    bool disable_auto_redirect;
    int max_authorization_retries;
    esp_err_t (*event_handler)(esp_http_client_event_t *event);
    int buffer_size, buffer_size_tx;
    void *user_data;
    esp_err_t (*crt_bundle_attach)(void *conf);
} esp_http_client_config_t;
esp_http_client_handle_t esp_http_client_init(const esp_http_client_config_t *config);
esp_err_t esp_http_client_cleanup(esp_http_client_handle_t client);
esp_err_t esp_http_client_set_url(esp_http_client_handle_t client, const char *url);
esp_err_t esp_http_client_set_method(esp_http_client_handle_t client, esp_http_client_method_t method);
esp_err_t esp_http_client_set_header(esp_http_client_handle_t client, const char *key, const char *value);
esp_err_t esp_http_client_delete_header(esp_http_client_handle_t client, const char *key);
esp_err_t esp_http_client_open(esp_http_client_handle_t client, int write_len);
int esp_http_client_write(esp_http_client_handle_t client, const char *buffer, int len);
int64_t esp_http_client_fetch_headers(esp_http_client_handle_t client);
int esp_http_client_get_status_code(esp_http_client_handle_t client);
int esp_http_client_read(esp_http_client_handle_t client, char *buffer, int len);

/* sdkconfig.h: what the build says; here the command line does */
extern const char *idf_target;
#define CONFIG_IDF_TARGET idf_target

#endif
