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
#include "options.h"
#include "provisiond_ota_psa.h"

static uint8_t buffer[PROVISIOND_OTA_BUFFER];
static provisiond_ota client;
static provisiond_ota_psa psa;
static host_http http;

int main(int argc, char **argv)
{
    host_options o;
    int code, first = host_options_parse(&o, argc, argv);
    if (first < 0) {
        return -first;
    }
    if (provisiond_ota_psa_init(&psa) != PROVISIOND_OTA_OK) {
        return host_usage("no cryptography");
    }
    host_http_init(&http, o.host, o.port, (int)o.timeout_ms);
    o.config.transport = &host_http_transport;
    o.config.transport_ctx = &http;
    o.config.flash = &host_board;
    o.config.crypto = &provisiond_ota_crypto_psa;
    o.config.crypto_ctx = &psa;
    o.config.buffer = buffer;
    o.config.buffer_len = sizeof buffer;
    code = host_run(&client, provisiond_ota_init(&client, &o.config), argc, argv, first);
    host_http_close(&http);
    return code;
}
