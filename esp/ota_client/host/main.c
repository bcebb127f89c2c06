/* The client as a program: a unit's app whose board is at the other end of standard
 * input and output (board.h) and whose server is at the other end of a socket.
 *
 *   ota_client --server HOST PORT --mac MAC --chip NAME --key HEX [--token-file F]
 *              [--version V] [--secure-version N] [--request BYTES]
 *              [--save-every SECTORS] [--timeout MS] ACTION...
 *
 * Actions: update, confirm, report, forget. Each one's result goes to the board, after
 * that of "init": action, error's name, HTTP status, retry-after, bytes fetched, boot.
 */
#include "board.h"
#include "http.h"
#include "internal.h"
#include "provisiond_ota_psa.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint8_t buffer[PROVISIOND_OTA_BUFFER];
static provisiond_ota client;
static provisiond_ota_psa psa;
static host_http http;
static char token[257];

static int usage(const char *what)
{
    fprintf(stderr, "ota_client: %s\n", what);
    return 2;
}

static bool number(const char *s, uint32_t *out)
{
    return pvo_decimal(s, strlen(s), out);
}

static bool read_token(const char *path)
{
    FILE *f = fopen(path, "r");
    bool ok;
    if (f == NULL) {
        return false;
    }
    ok = fgets(token, sizeof token, f) != NULL;
    (void)fclose(f);
    token[strcspn(token, "\n")] = '\0';
    return ok;
}

static bool parse_mac(const char *s, uint8_t mac[6])
{
    if (strlen(s) != 17) {
        return false;
    }
    for (size_t i = 0; i < 6; i++) {
        if (!pvo_hex(s + 3 * i, 2, mac + i, 1)) {
            return false;
        }
    }
    return true;
}

static const char *boot_name(provisiond_ota_boot b)
{
    switch (b) {
    case PROVISIOND_OTA_BOOT_NEW:
        return "new";
    case PROVISIOND_OTA_BOOT_ROLLED_BACK:
        return "rolled-back";
    default:
        return "normal";
    }
}

static void result(const char *action, provisiond_ota_err err)
{
    char line[160];
    (void)snprintf(line, sizeof line, "%s %s %d %lu %lu %s", action, provisiond_ota_err_name(err), client.status,
                   (unsigned long)client.retry_after, (unsigned long)client.fetched, boot_name(client.boot));
    host_board_result(line);
}

int main(int argc, char **argv)
{
    provisiond_ota_config config;
    provisiond_ota_err err;
    const char *host = NULL, *port = NULL;
    uint32_t timeout = 10000;
    int i = 1;

    memset(&config, 0, sizeof config);
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        const char *name = argv[i], *v = i + 1 < argc ? argv[i + 1] : "";
        bool ok = false;
        if (strcmp(name, "--server") == 0 && i + 2 < argc) {
            host = v;
            port = argv[i + 2];
            i++;
            ok = true;
        } else if (strcmp(name, "--mac") == 0) {
            ok = parse_mac(v, config.mac);
        } else if (strcmp(name, "--chip") == 0) {
            config.chip = v;
            ok = true;
        } else if (strcmp(name, "--key") == 0) {
            ok = pvo_hex(v, strlen(v), config.public_key, sizeof config.public_key);
        } else if (strcmp(name, "--token-file") == 0) {
            ok = read_token(v);
            config.token = token;
        } else if (strcmp(name, "--version") == 0) {
            config.version = v;
            ok = true;
        } else if (strcmp(name, "--secure-version") == 0) {
            ok = number(v, &config.secure_version);
        } else if (strcmp(name, "--request") == 0) {
            ok = number(v, &config.request_bytes);
        } else if (strcmp(name, "--save-every") == 0) {
            ok = number(v, &config.save_every);
        } else if (strcmp(name, "--timeout") == 0) {
            ok = number(v, &timeout);
        }
        if (!ok) {
            return usage(name);
        }
    }
    if (host == NULL || config.chip == NULL) {
        return usage("--server and --chip are needed");
    }
    if (provisiond_ota_psa_init(&psa) != PROVISIOND_OTA_OK) {
        return usage("no cryptography");
    }
    host_http_init(&http, host, port, (int)timeout);
    config.transport = &host_http_transport;
    config.transport_ctx = &http;
    config.flash = &host_board;
    config.crypto = &provisiond_ota_crypto_psa;
    config.crypto_ctx = &psa;
    config.buffer = buffer;
    config.buffer_len = sizeof buffer;
    err = provisiond_ota_init(&client, &config);
    result("init", err);
    for (; i < argc && err == PROVISIOND_OTA_OK; i++) {
        if (strcmp(argv[i], "update") == 0) {
            result(argv[i], provisiond_ota_update(&client));
        } else if (strcmp(argv[i], "confirm") == 0) {
            result(argv[i], provisiond_ota_confirm(&client));
        } else if (strcmp(argv[i], "report") == 0) {
            result(argv[i], provisiond_ota_report(&client));
        } else if (strcmp(argv[i], "forget") == 0) {
            result(argv[i], provisiond_ota_forget(&client));
        } else {
            return usage(argv[i]);
        }
    }
    host_http_close(&http);
    return 0;
}
