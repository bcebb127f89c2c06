/*
 * The client on a device: its tables over esp_http_client, esp_partition, esp_ota_ops,
 * NVS and mbedTLS's PSA interface. ESP-IDF 5.2 or newer.
 *
 * Everything is in the caller's provisiond_ota_esp; make it static. The component
 * takes no heap itself. esp_http_client takes its buffers at the start and TLS what it
 * needs for a connection; mbedTLS takes some while a signature is checked.
 */
#ifndef PROVISIOND_OTA_ESP_H
#define PROVISIOND_OTA_ESP_H

#include "provisiond_ota.h"
#include "provisiond_ota_psa.h"

#include "esp_err.h"
#include "esp_http_client.h"
#include "esp_partition.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PROVISIOND_OTA_ESP_URL_MAX 159u

/* All pointers must stay. */
typedef struct {
    const char *url;             /* "https://ota.example:8443", no path and no slash at the end */
    const char *cert_pem;        /* the server's authority */
    esp_err_t (*crt_bundle_attach)(void *conf); /* or ESP-IDF's bundle of them */
    const char *client_cert_pem; /* where the unit shows a certificate instead of a token */
    const char *client_key_pem;
    int timeout_ms;              /* 0: 15000 */
    const char *token;           /* from the unit's data partition, or NULL */
    uint8_t public_key[64];      /* of the manifests' signer */
    uint32_t request_bytes, save_every; /* 0: the defaults */
    void (*progress)(void *ctx, uint32_t done, uint32_t total);
    void *progress_ctx;
} provisiond_ota_esp_config;

typedef struct {
    provisiond_ota client; /* for provisiond_ota_update and the others */
    provisiond_ota_psa psa;
    esp_http_client_config_t http_config;
    esp_http_client_handle_t http; /* NULL after an answer that broke off */
    provisiond_ota_response *response; /* that header fields go to, during a request */
    bool connected;                    /* an answer was read to its end on it */
    const char *base;
    char url[PROVISIOND_OTA_ESP_URL_MAX + PROVISIOND_OTA_PATH_MAX + 1];
    char header[288];
    const esp_partition_t *running, *next;
    uint8_t buffer[PROVISIOND_OTA_BUFFER];
} provisiond_ota_esp;

/* Once after each boot, when NVS (nvs_flash_init) and the network are up. */
provisiond_ota_err provisiond_ota_esp_init(provisiond_ota_esp *esp, const provisiond_ota_esp_config *config);

#ifdef __cplusplus
}
#endif

#endif
