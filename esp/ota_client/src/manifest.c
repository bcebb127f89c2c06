/* The manifest: text of fixed lines in a fixed order (docs/ota.md), the last of
 * which signs all before it. */
#include "internal.h"

#include <string.h>

/* Rest of the text that is not read yet. */
typedef struct {
    const char *at;
    size_t left;
} rest;

/* Takes a line "name value" and gives the value. */
static bool line(rest *r, const char *name, const char **value, size_t *len)
{
    size_t n = strlen(name);
    const char *end = r->left == 0 ? NULL : memchr(r->at, '\n', r->left);
    size_t all;
    if (end == NULL) {
        return false;
    }
    all = (size_t)(end - r->at);
    if (all < n + 1 || memcmp(r->at, name, n) != 0 || r->at[n] != ' ') {
        return false;
    }
    *value = r->at + n + 1;
    *len = all - n - 1;
    r->at = end + 1;
    r->left -= all + 1;
    return true;
}

static bool line_text(rest *r, const char *name, char *out, size_t max)
{
    const char *v;
    size_t n;
    if (!line(r, name, &v, &n) || !pvo_printable(v, n, max)) {
        return false;
    }
    memcpy(out, v, n);
    out[n] = '\0';
    return true;
}

/* "-" stands for nothing. */
static bool line_maybe(rest *r, const char *name, char *out)
{
    if (!line_text(r, name, out, PROVISIOND_OTA_TEXT_MAX)) {
        return false;
    }
    if (strcmp(out, "-") == 0) {
        out[0] = '\0';
    }
    return true;
}

static bool line_number(rest *r, const char *name, uint32_t *out)
{
    const char *v;
    size_t n;
    return line(r, name, &v, &n) && pvo_decimal(v, n, out);
}

static bool line_hex(rest *r, const char *name, uint8_t *out, size_t bytes)
{
    const char *v;
    size_t n;
    return line(r, name, &v, &n) && pvo_hex(v, n, out, bytes);
}

static bool line_mac(rest *r, uint8_t mac[6])
{
    const char *v;
    size_t n;
    if (!line(r, "unit", &v, &n) || n != 17) {
        return false;
    }
    for (size_t i = 0; i < 6; i++) {
        if (!pvo_hex(v + 3 * i, 2, mac + i, 1) || (i < 5 && v[3 * i + 2] != ':')) {
            return false;
        }
    }
    return true;
}

/* A flash address: 0x and eight digits. */
static bool line_address(rest *r, uint32_t *out)
{
    const char *v;
    size_t n;
    uint8_t b[4];
    if (!line(r, "address", &v, &n) || n != 10 || v[0] != '0' || v[1] != 'x' || !pvo_hex(v + 2, 8, b, 4)) {
        return false;
    }
    *out = (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
    return true;
}

static bool line_nonce(rest *r, provisiond_ota_manifest *m)
{
    const char *v;
    size_t n;
    if (!line(r, "nonce", &v, &n)) {
        return false;
    }
    m->has_nonce = !(n == 1 && v[0] == '-');
    return !m->has_nonce || pvo_hex(v, n, m->nonce, sizeof m->nonce);
}

static int base64_value(char c)
{
    if (c >= 'A' && c <= 'Z') {
        return c - 'A';
    }
    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 26;
    }
    if (c >= '0' && c <= '9') {
        return c - '0' + 52;
    }
    if (c == '+') {
        return 62;
    }
    return c == '/' ? 63 : -1;
}

/* Standard base64 with padding, and no second spelling of the same bytes. */
static bool base64(const char *s, size_t len, uint8_t *out, size_t cap, size_t *got)
{
    size_t n = 0;
    if (len == 0 || len % 4 != 0) {
        return false;
    }
    for (size_t i = 0; i < len; i += 4) {
        bool last = i + 4 == len;
        int pad = last && s[i + 3] == '=' ? (s[i + 2] == '=' ? 2 : 1) : 0;
        uint32_t v = 0;
        for (int j = 0; j < 4; j++) {
            int d = j >= 4 - pad ? 0 : base64_value(s[i + (size_t)j]);
            if (d < 0) {
                return false;
            }
            v = v << 6 | (uint32_t)d;
        }
        if ((pad == 1 && (v & 0xFF) != 0) || (pad == 2 && (v & 0xFFFF) != 0)) {
            return false;
        }
        for (int j = 0; j < 3 - pad; j++) {
            if (n == cap) {
                return false;
            }
            out[n++] = (uint8_t)(v >> (16 - 8 * j));
        }
    }
    *got = n;
    return true;
}

/* One INTEGER of a DER signature: positive, as short as it can be, at most 32 bytes. */
static bool der_integer(const uint8_t *p, size_t len, size_t *at, uint8_t out[32])
{
    size_t n;
    if (len - *at < 3 || p[*at] != 0x02) {
        return false;
    }
    n = p[*at + 1];
    *at += 2;
    if (n == 0 || n > 33 || n > len - *at) {
        return false;
    }
    p += *at;
    *at += n;
    if ((p[0] & 0x80) != 0 || (p[0] == 0 && (n == 1 || (p[1] & 0x80) == 0))) {
        return false; /* negative, zero, or longer than need be */
    }
    if (p[0] == 0) {
        p++;
        n--;
    }
    if (n > 32) {
        return false;
    }
    memset(out, 0, 32);
    memcpy(out + 32 - n, p, n);
    return true;
}

/* Ecdsa-Sig-Value (RFC 3279, 2.2.3) as DER, to r then s. */
static bool der_signature(const uint8_t *p, size_t len, uint8_t out[64])
{
    size_t at = 2;
    if (len < 8 || p[0] != 0x30 || p[1] != len - 2) {
        return false;
    }
    return der_integer(p, len, &at, out) && der_integer(p, len, &at, out + 32) && at == len;
}

static bool line_signature(rest *r, uint8_t out[64])
{
    const char *v;
    size_t n, got = 0;
    uint8_t der[72];
    return line(r, "signature", &v, &n) && base64(v, n, der, sizeof der, &got) && der_signature(der, got, out);
}

static bool version_one(rest *r)
{
    const char *v;
    size_t n;
    return line(r, "provisiond-ota-manifest", &v, &n) && n == 1 && v[0] == '1';
}

static bool parse(provisiond_ota_manifest *m, rest *r)
{
    const char *start = r->at;
    if (!version_one(r) || !line_mac(r, m->mac) ||
        !line_text(r, "chip", m->chip, sizeof m->chip - 1) ||
        !line_maybe(r, "release", m->release) ||
        !line_maybe(r, "project", m->project) ||
        !line_maybe(r, "version", m->version) ||
        !line_text(r, "slot", m->slot, sizeof m->slot - 1) ||
        !line_address(r, &m->address) ||
        !line_number(r, "length", &m->length) ||
        !line_number(r, "plain-length", &m->plain_length) ||
        !line_hex(r, "sha256-plain", m->sha256_plain, 32) ||
        !line_hex(r, "sha256-cipher", m->sha256_cipher, 32) ||
        !line_number(r, "secure-version", &m->secure_version) ||
        !line_hex(r, "key", m->key, 32) ||
        !line_nonce(r, m) ||
        !line_hex(r, "signer", m->signer, 32)) {
        return false;
    }
    m->signed_len = (size_t)(r->at - start);
    return line_signature(r, m->signature) && r->left == 0;
}

/* ota_0 to ota_15. */
static bool valid_slot(const char *s)
{
    uint32_t n;
    return strncmp(s, "ota_", 4) == 0 && pvo_decimal(s + 4, strlen(s + 4), &n) && n < 16;
}

static bool valid_chip(const char *s)
{
    if (strncmp(s, "esp32", 5) != 0) {
        return false;
    }
    for (s += 5; *s != '\0'; s++) {
        if (!(*s >= 'a' && *s <= 'z') && !(*s >= '0' && *s <= '9')) {
            return false;
        }
    }
    return true;
}

static bool all_zero(const uint8_t *p, size_t n)
{
    uint8_t any = 0;
    for (size_t i = 0; i < n; i++) {
        any |= p[i];
    }
    return any == 0;
}

/* What must hold for any manifest. The ESP32's cipher works on 32 bytes, that of
 * all others on 16. */
static bool valid(const provisiond_ota_manifest *m)
{
    uint32_t align = strcmp(m->chip, "esp32") == 0 ? 32 : 16;
    return valid_chip(m->chip) && valid_slot(m->slot) &&
           !all_zero(m->mac, sizeof m->mac) && (m->mac[0] & 1) == 0 &&
           !all_zero(m->key, sizeof m->key) &&
           m->address % align == 0 && m->length % align == 0 &&
           m->plain_length > 0 && m->plain_length <= m->length && m->length - m->plain_length < align &&
           m->length - 1 <= UINT32_MAX - m->address;
}

provisiond_ota_err provisiond_ota_manifest_parse(provisiond_ota_manifest *m, const uint8_t *text, size_t len)
{
    rest r = {(const char *)text, len};
    memset(m, 0, sizeof *m);
    if (text == NULL || len > PROVISIOND_OTA_MANIFEST_MAX || !parse(m, &r) || !valid(m)) {
        memset(m, 0, sizeof *m);
        return PROVISIOND_OTA_MANIFEST;
    }
    return PROVISIOND_OTA_OK;
}
