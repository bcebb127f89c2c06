/* Feeds the parsers with whatever comes, under the sanitizers: for the tests of
 * internal/otaclient, which compare what they say with what Go says.
 *
 *   request: kind (1 byte), length (4, little-endian), so many bytes
 *   answer:  1 if it parses, else 0 (1 byte), length (4), so many bytes: what was read
 *
 * Kinds: m manifest (the fields, a line each), h answer's head, r record (encoded again).
 */
#include "http.h"
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IN_MAX 8192u

static char out[4096];
static size_t out_len;

static void say(const char *format, ...)
{
    va_list args;
    int n;
    va_start(args, format);
    n = vsnprintf(out + out_len, sizeof out - out_len, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof out - out_len) {
        abort();
    }
    out_len += (size_t)n;
}

static void say_hex(const char *name, const uint8_t *p, size_t n)
{
    char hex[2 * 64 + 1];
    pvo_text t;
    pvo_text_start(&t, hex, sizeof hex);
    pvo_text_hex(&t, p, n);
    say("%s %s\n", name, hex);
}

static bool do_manifest(const uint8_t *in, size_t len)
{
    provisiond_ota_manifest m;
    char mac[18];
    pvo_text t;
    if (provisiond_ota_manifest_parse(&m, in, len) != PROVISIOND_OTA_OK) {
        return false;
    }
    pvo_text_start(&t, mac, sizeof mac);
    pvo_text_mac(&t, m.mac);
    say("unit %s\nchip %s\nrelease %s\nproject %s\nversion %s\nslot %s\naddress 0x%08lx\nlength %lu\nplain-length %lu\n",
        mac, m.chip, m.release, m.project, m.version, m.slot, (unsigned long)m.address, (unsigned long)m.length,
        (unsigned long)m.plain_length);
    say_hex("sha256-plain", m.sha256_plain, 32);
    say_hex("sha256-cipher", m.sha256_cipher, 32);
    say("secure-version %lu\n", (unsigned long)m.secure_version);
    say_hex("key", m.key, 32);
    say_hex("nonce", m.nonce, m.has_nonce ? 16 : 0);
    say_hex("signer", m.signer, 32);
    say_hex("signature", m.signature, 64);
    say("signed %lu\n", (unsigned long)m.signed_len);
    return true;
}

static bool do_head(const uint8_t *in, size_t len)
{
    static uint8_t copy[HOST_HEAD_MAX];
    provisiond_ota_response r;
    bool keep = false;
    long n;
    memset(&r, 0, sizeof r);
    if (len > sizeof copy) {
        len = sizeof copy;
    }
    memcpy(copy, in, len);
    n = host_http_parse_head(copy, len, &r, &keep);
    if (n <= 0) {
        say("%ld", n);
        return false;
    }
    say("%ld %d bad=%d keep=%d", n, r.status, r.bad, keep);
    if (!r.bad) {
        if (r.has_length) {
            say(" length=%lu", (unsigned long)r.length);
        }
        if (r.has_range) {
            say(" range=%lu-%lu/%lu", (unsigned long)r.range_first, (unsigned long)r.range_last, (unsigned long)r.range_total);
        }
        if (r.has_etag) {
            say(" etag=%s", r.etag);
        }
        if (r.has_retry) {
            say(" retry=%lu", (unsigned long)r.retry_after);
        }
    }
    return true;
}

static bool do_record(const uint8_t *in, size_t len)
{
    provisiond_ota_record r;
    if (!provisiond_ota_record_decode(&r, in, len)) {
        return false;
    }
    out_len = provisiond_ota_record_encode(&r, (uint8_t *)out);
    return true;
}

int main(void)
{
    uint8_t head[5];
    while (fread(head, 1, sizeof head, stdin) == sizeof head) {
        size_t len = (size_t)head[1] | (size_t)head[2] << 8 | (size_t)head[3] << 16 | (size_t)head[4] << 24;
        bool ok = false;
        uint8_t *in;
        if (len > IN_MAX) {
            return 2;
        }
        in = malloc(len == 0 ? 1 : len); /* of the very size, so that the sanitizer sees its end */
        if (in == NULL || fread(in, 1, len, stdin) != len) {
            free(in);
            return 2;
        }
        out_len = 0;
        switch (head[0]) {
        case 'm':
            ok = do_manifest(in, len);
            break;
        case 'h':
            ok = do_head(in, len);
            break;
        case 'r':
            ok = do_record(in, len);
            break;
        default:
            free(in);
            return 2;
        }
        free(in);
        head[0] = ok ? 1 : 0;
        for (int i = 0; i < 4; i++) {
            head[1 + i] = (uint8_t)(out_len >> (8 * i));
        }
        if (fwrite(head, 1, sizeof head, stdout) != sizeof head || fwrite(out, 1, out_len, stdout) != out_len ||
            fflush(stdout) != 0) {
            return 2;
        }
    }
    return 0;
}
