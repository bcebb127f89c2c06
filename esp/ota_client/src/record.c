/* The progress record as it is stored: numbers little-endian, a CRC-32 at the end.
 *
 *   0 "pvO1"   4 phase   5 told   6 why   7 rejected
 *   8 address  12 length  16 written  20 secure version
 *  24 SHA-256 of the plaintext   56 SHA-256 of the ciphertext
 *  88 slot (8)  96 release (68)  164 version (68)  232 entity tag (112)
 * 344 CRC-32 of all before
 */
#include "internal.h"

#include <string.h>

#define LEN PROVISIOND_OTA_RECORD_MAX
#define CRC_AT (LEN - 4u)

static const uint8_t magic[4] = {'p', 'v', 'O', '1'};

static void put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
    p[2] = (uint8_t)(v >> 16);
    p[3] = (uint8_t)(v >> 24);
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t crc32(const uint8_t *p, size_t n)
{
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1u)));
        }
    }
    return ~crc;
}

/* Text that ends inside its place, with zeros after it. */
static bool get_text(char *out, const uint8_t *in, size_t place, size_t max)
{
    size_t n = 0;
    while (n < place && in[n] != 0) {
        n++;
    }
    if (n == place || n > max) {
        return false;
    }
    for (size_t i = n; i < place; i++) {
        if (in[i] != 0) {
            return false;
        }
    }
    for (size_t i = 0; i < n; i++) {
        if (in[i] <= ' ' || in[i] > '~') {
            return false;
        }
    }
    memcpy(out, in, n);
    out[n] = '\0';
    return true;
}

size_t provisiond_ota_record_encode(const provisiond_ota_record *r, uint8_t out[PROVISIOND_OTA_RECORD_MAX])
{
    memset(out, 0, LEN);
    memcpy(out, magic, sizeof magic);
    out[4] = r->phase;
    out[5] = r->told ? 1 : 0;
    out[6] = r->why;
    out[7] = r->rejected ? 1 : 0;
    put32(out + 8, r->address);
    put32(out + 12, r->length);
    put32(out + 16, r->written);
    put32(out + 20, r->secure_version);
    memcpy(out + 24, r->sha256_plain, 32);
    memcpy(out + 56, r->sha256_cipher, 32);
    memcpy(out + 88, r->slot, strlen(r->slot));
    memcpy(out + 96, r->release, strlen(r->release));
    memcpy(out + 164, r->version, strlen(r->version));
    memcpy(out + 232, r->etag, strlen(r->etag));
    put32(out + CRC_AT, crc32(out, CRC_AT));
    return LEN;
}

bool provisiond_ota_record_decode(provisiond_ota_record *r, const uint8_t *in, size_t len)
{
    memset(r, 0, sizeof *r);
    if (len != LEN || memcmp(in, magic, sizeof magic) != 0 || get32(in + CRC_AT) != crc32(in, CRC_AT)) {
        return false;
    }
    r->phase = in[4];
    r->told = in[5] == 1;
    r->why = in[6];
    r->rejected = in[7] == 1;
    r->address = get32(in + 8);
    r->length = get32(in + 12);
    r->written = get32(in + 16);
    r->secure_version = get32(in + 20);
    memcpy(r->sha256_plain, in + 24, 32);
    memcpy(r->sha256_cipher, in + 56, 32);
    if (in[4] > PROVISIOND_OTA_PHASE_BAD || in[5] > 1 || in[6] >= PROVISIOND_OTA_ERR_COUNT || in[7] > 1 ||
        r->written > r->length ||
        (r->written % PROVISIOND_OTA_SECTOR != 0 && r->written != r->length) ||
        !get_text(r->slot, in + 88, 8, sizeof r->slot - 1) ||
        !get_text(r->release, in + 96, 68, PROVISIOND_OTA_TEXT_MAX) ||
        !get_text(r->version, in + 164, 68, PROVISIOND_OTA_TEXT_MAX) ||
        !get_text(r->etag, in + 232, 112, PROVISIOND_OTA_ETAG_MAX)) {
        memset(r, 0, sizeof *r);
        return false;
    }
    return true;
}
