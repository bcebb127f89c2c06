/* Small pieces of text, written and read within their bounds. */
#include "internal.h"

#include <string.h>

void pvo_text_start(pvo_text *t, char *buf, size_t cap)
{
    t->at = buf;
    t->cap = cap;
    t->len = 0;
    t->full = cap == 0;
    if (cap != 0) {
        buf[0] = '\0';
    }
}

static void add_char(pvo_text *t, char c)
{
    if (t->full || t->len + 1 >= t->cap) {
        t->full = true;
        return;
    }
    t->at[t->len++] = c;
    t->at[t->len] = '\0';
}

void pvo_text_add(pvo_text *t, const char *s)
{
    for (; *s != '\0'; s++) {
        add_char(t, *s);
    }
}

void pvo_text_number(pvo_text *t, uint32_t v)
{
    char digits[10];
    size_t n = 0;
    do {
        digits[n++] = (char)('0' + v % 10);
        v /= 10;
    } while (v != 0);
    while (n > 0) {
        add_char(t, digits[--n]);
    }
}

static const char hex_digits[] = "0123456789abcdef";

void pvo_text_hex(pvo_text *t, const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        add_char(t, hex_digits[p[i] >> 4]);
        add_char(t, hex_digits[p[i] & 15]);
    }
}

void pvo_text_mac(pvo_text *t, const uint8_t mac[6])
{
    for (size_t i = 0; i < 6; i++) {
        if (i != 0) {
            add_char(t, ':');
        }
        pvo_text_hex(t, mac + i, 1);
    }
}

static bool unreserved(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           c == '-' || c == '.' || c == '_' || c == '~';
}

/* The server shows and compares control characters as underscores. */
static char shown(char c)
{
    return (uint8_t)c < 0x20 || c == 0x7F ? '_' : c;
}

void pvo_text_query(pvo_text *t, const char *s)
{
    for (; *s != '\0'; s++) {
        char c = shown(*s);
        if (unreserved(c)) {
            add_char(t, c);
        } else {
            uint8_t b = (uint8_t)c;
            add_char(t, '%');
            pvo_text_hex(t, &b, 1);
        }
    }
}

void pvo_text_json(pvo_text *t, const char *s)
{
    add_char(t, '"');
    for (; *s != '\0'; s++) {
        if (*s == '"' || *s == '\\') {
            add_char(t, '\\');
        }
        add_char(t, shown(*s));
    }
    add_char(t, '"');
}

bool pvo_decimal(const char *s, size_t len, uint32_t *out)
{
    uint32_t v = 0;
    if (len == 0 || len > 10 || (len > 1 && s[0] == '0')) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        if (s[i] < '0' || s[i] > '9') {
            return false;
        }
        uint32_t d = (uint32_t)(s[i] - '0');
        if (v > (UINT32_MAX - d) / 10) {
            return false;
        }
        v = v * 10 + d;
    }
    *out = v;
    return true;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    return -1;
}

bool pvo_hex(const char *s, size_t len, uint8_t *out, size_t n)
{
    if (len != 2 * n) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        int high = hex_value(s[2 * i]), low = hex_value(s[2 * i + 1]);
        if (high < 0 || low < 0) {
            return false;
        }
        out[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

bool pvo_printable(const char *s, size_t len, size_t max)
{
    if (len == 0 || len > max) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        if (s[i] <= ' ' || s[i] > '~') {
            return false;
        }
    }
    return true;
}
